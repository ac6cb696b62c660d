from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_stopwatch import FakeStopwatch
from layer_nets import (
    FORCE,
    REPRODUCERS,
    net,
    node,
    normal,
    output_error,
    rewritten,
    runs,
    samples,
    weights_of,
    whats,
    whys,
)

from onnxslim import cli
from onnxslim.analysis.branches import Branch
from onnxslim.blocks import ranking
from onnxslim.errors import NotApplicable, UsageError
from onnxslim.io.check import check_model, signature
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.passes.prune_blocks import PruneBlocks
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Fidelity
from onnxslim.report import StepReport
from onnxslim.runtime.evaluate import evaluate
from onnxslim.services.stopwatch import Stopwatch
from support import CONTEXT, parse

X = samples(200, 8, rank=6)
HELD = samples(400, 8, rank=6)[200:]


def spec(**options: object) -> str:
    return str(PruneBlocks(**options))  # type: ignore[arg-type]


def blocks(*scales: float, inner: int = 12) -> onnx.ModelProto:
    """Residual blocks that add `scale` times as much as the first; the last layer reads them."""
    nodes, constants, last = [], {}, "x"
    for number, scale in enumerate(scales):
        constants[f"u{number}"] = normal(8, inner, seed=2 * number, scale=0.4)
        constants[f"w{number}"] = normal(inner, 8, seed=2 * number + 1, scale=0.4 * scale)
        nodes += [
            node("MatMul", [last, f"u{number}"], f"h{number}"),
            node("Relu", [f"h{number}"], f"r{number}"),
            node("MatMul", [f"r{number}", f"w{number}"], f"b{number}"),
            node("Add", [last, f"b{number}"], f"s{number}"),
        ]
        last = f"s{number}"
    constants |= {"o": normal(8, 5, seed=99, scale=0.4), "c": normal(5, seed=98)}
    nodes.append(node("Gemm", [last, "o", "c"], "y"))
    return net(nodes, constants, ["N", 8])


def normalized_blocks(*scales: float, is_centred: bool) -> onnx.ModelProto:
    """Blocks whose sums are normalized, as in BERT."""
    nodes, constants, last = [], {}, "x"
    op = "LayerNormalization" if is_centred else "RMSNormalization"
    for number, scale in enumerate(scales):
        constants[f"w{number}"] = normal(8, 8, seed=number, scale=scale)
        constants[f"g{number}"] = 1 + normal(8, seed=10 + number, scale=0.3)
        constants[f"c{number}"] = normal(8, seed=20 + number)
        operands = [f"s{number}", f"g{number}", f"c{number}"]
        nodes += [
            node("MatMul", [last, f"w{number}"], f"b{number}"),
            node("Add", [last, f"b{number}"], f"s{number}"),
            node(op, operands if is_centred else operands[:2], f"n{number}"),
        ]
        last = f"n{number}"
    constants["o"] = normal(8, 5, seed=99, scale=0.4)
    nodes.append(node("MatMul", [last, "o"], "y"))
    return net(nodes, constants, ["N", 8], opset=23)


def pruned(
    source: onnx.ModelProto,
    x: np.ndarray | None,
    stopwatch: Stopwatch | None = None,
    **options: object,
) -> tuple[Model, list[StepReport]]:
    made = Context(
        evaluate=evaluate, calibration=None if x is None else runs(x), stopwatch=stopwatch
    )
    model = Model.load(source)
    manager = PassManager.parse(spec(**options))
    result, reports = manager.run(model, made, policy=FORCE, reproducers=REPRODUCERS)
    check_model(result)
    assert signature(result) == signature(model)
    return result, reports


def left(model: Model) -> set[str]:
    return {name for name in weights_of(model) if name.startswith("b")}


def removals(reports: list[StepReport]) -> list[str]:
    return [what for what in whats(reports) if what.startswith("removed")]


def share(source: onnx.ModelProto, model: Model, what: str) -> float:
    before, after = measure_stats(Model.load(source)), measure_stats(model)
    return float(getattr(after, what)) / float(getattr(before, what))


# ------------------------------------------------------------------- fires


@pytest.mark.parametrize("data", [None, X], ids=["without data", "with data"])
@pytest.mark.parametrize("scales", [(1, 0.05, 0.7), (0.05, 0.9, 0.6), (1, 0.8, 0.03)])
def test_the_branch_that_adds_least_goes_first(
    scales: tuple[float, ...], data: np.ndarray | None
) -> None:
    model, reports = pruned(blocks(*scales), data, ratio=0.34)
    assert left(model) == {f"b{i}" for i in range(3)} - {f"b{int(np.argmin(scales))}"}
    assert reports[0].fidelity is Fidelity.LOSSY
    (what,) = removals(reports)
    assert what.startswith(f"removed `b{int(np.argmin(scales))}` with 2 weight layers, 192 multi")
    assert ("diverge by" in what) == (data is not None)


def test_the_next_to_go_is_chosen_anew() -> None:
    model, reports = pruned(blocks(0.3, 1, 0.1, 0.6), X, ratio=0.5)
    assert left(model) == {"b1", "b3"}
    assert [what.split("`")[1] for what in removals(reports)] == ["b2", "b0"]


def test_only_branches_that_may_be_next_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    without = ranking._without

    def noted(model: Model, branch: Branch) -> Model:
        measured.append(branch.label)
        return without(model, branch)

    monkeypatch.setattr(ranking, "_without", noted)
    pruned(blocks(0.05, 1, 0.02, 0.8), X, ratio=0.5)
    assert measured == ["b0", "b1", "b2", "b3", "b0"]


def test_a_refit_of_what_reads_the_sum_lowers_the_error() -> None:
    source = blocks(0.5, 0.8, 0.6)
    errors = {}
    for reconstruct in (True, False):
        model, reports = pruned(source, X, ratio=0.34, reconstruct=reconstruct)
        errors[reconstruct] = output_error(source, model, HELD)
        said = any("refitted to the original model" in what for what in whats(reports))
        assert said == reconstruct
    assert errors[True] < 0.9 * errors[False]


@pytest.mark.parametrize("is_centred", [True, False])
def test_normalizations_that_are_left_are_refitted(is_centred: bool) -> None:
    source = normalized_blocks(0.7, 0.5, 0.9, is_centred=is_centred)
    errors = {}
    for reconstruct in (True, False):
        model, reports = pruned(source, X[:60], ratio=0.34, reconstruct=reconstruct)
        errors[reconstruct] = output_error(source, model, HELD)
        said = {change.node for change in reports[0].changes if "refitted" in change.what}
        assert bool(said & {"n0", "n1", "n2"}) == reconstruct
    assert errors[True] < 0.9 * errors[False]


def test_a_term_of_three_leaves_a_sum_of_two() -> None:
    constants = {"a": normal(8, 8, scale=0.02), "b": normal(8, 8, seed=3), "o": normal(8, 2)}
    nodes = [
        node("MatMul", ["x", "a"], "p"),
        node("MatMul", ["x", "b"], "q"),
        node("Sum", ["p", "x", "q"], "s"),
        node("MatMul", ["s", "o"], "y"),
    ]
    source = net(nodes, constants, ["N", 8])
    model, _ = pruned(source, X, ratio=0.5)
    total = next(n for n in model.graph.nodes if n.op == "Sum")
    assert [tensor.name for tensor in total.inputs] == ["x", "q"]
    model, _ = pruned(source, X, ratio=0.99)
    assert [n.op for n in model.graph.nodes] == ["MatMul"]


def test_of_two_branches_of_one_sum_one_stays() -> None:
    constants = {"a": normal(8, 8), "b": normal(8, 8, seed=3, scale=0.1), "o": normal(8, 2)}
    nodes = [
        node("MatMul", ["x", "a"], "p"),
        node("MatMul", ["x", "b"], "q"),
        node("Add", ["p", "q"], "s"),
        node("MatMul", ["s", "o"], "y"),
    ]
    model, _ = pruned(net(nodes, constants, ["N", 8]), X, ratio=0.99)
    assert set(weights_of(model)) == {"p", "y"}


def test_without_data_the_report_says_what_that_costs() -> None:
    for data in (None, X):
        _, reports = pruned(blocks(1, 0.1), data)
        said = any("no calibration samples" in why for why in whys(reports))
        assert said == (data is None)


# ------------------------------------------------------------------- budgets


@pytest.mark.parametrize(("ratio", "gone"), [(0, 0), (0.2, 1), (0.5, 2), (0.75, 3), (0.99, 4)])
def test_a_ratio_counts_branches(ratio: float, gone: int) -> None:
    model, reports = pruned(blocks(0.3, 1, 0.1, 0.6), X, ratio=ratio)
    assert len(left(model)) == 4 - gone
    assert len(removals(reports)) == gone


@pytest.mark.parametrize("amount", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("kind", ["macs", "bytes_"])
def test_a_budget_is_met_and_one_branch_less_would_not_do(kind: str, amount: float) -> None:
    source = blocks(0.3, 1, 0.1, 0.6)
    model, reports = pruned(source, X, **{kind: amount})
    what = {"macs": "macs", "bytes_": "initializer_bytes"}[kind]
    found = share(source, model, what)
    step = 192 / (4 * 192 + 40)
    assert amount - step - 0.02 < found <= amount
    assert whats(reports)


@pytest.mark.parametrize("amount", [0.8, 0.5])
def test_a_budget_of_latency_is_measured_and_can_be_repeated_without(amount: float) -> None:
    source = blocks(0.3, 1, 0.1, 0.6)
    model, reports = pruned(source, X, FakeStopwatch(), latency=amount)
    assert amount - 0.26 < share(source, model, "macs") <= amount
    resolved = str(reports[0].resolved)
    assert resolved.startswith("prune-blocks:macs=")
    again, _ = rewritten(source, X, resolved)
    assert again.to_bytes() == model.to_bytes()


@pytest.mark.parametrize("options", [{"macs": 0.01}, {"bytes_": 0.01}, {"latency": 0.01}])
def test_a_budget_out_of_reach_is_told_and_nothing_is_done(options: dict[str, float]) -> None:
    source = blocks(1, 0.1)
    model, reports = pruned(source, X, FakeStopwatch(), **options)
    assert model.to_bytes() == Model.load(source).to_bytes()
    assert any("is out of reach even without all 2 branches" in why for why in whys(reports))


def test_a_budget_that_is_met_already_removes_nothing() -> None:
    _, reports = pruned(blocks(1, 0.1), X, macs=1.0)
    assert not whats(reports)
    assert "a budget of macs=1 is met without removing a branch" in whys(reports)


# ------------------------------------------------------------------- declines


def test_two_budgets_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="takes one of ratio, macs, latency and bytes; got ratio"):
        PruneBlocks(ratio=0.5, bytes_=0.5)


def test_a_graph_without_branches_is_declined() -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(8, 2)}, ["N", 8])
    with pytest.raises(NotApplicable, match="no residual branch"):
        PruneBlocks().requires(Model.load(source).graph, CONTEXT)


def test_a_budget_of_latency_needs_a_clock() -> None:
    with pytest.raises(NotApplicable, match="leave out --no-latency"):
        PruneBlocks(latency=0.5).requires(Model.load(blocks(1.0)).graph, CONTEXT)


def test_sizes_that_are_not_known_are_no_base_for_multiply_accumulates() -> None:
    source = parse("""
    <opset_import: ["" : 17]>
    g (float[N,1,H,W] x) => (float[N,1,H,W] y) <float[1,1,1,1] w = {3}> {
      h = Conv (x, w)
      y = Add (x, h)
    }""")
    model = Model.load(source)
    infer_shapes(model)
    with pytest.raises(NotApplicable, match="that of `h` is not known: give --input-shape"):
        PruneBlocks(macs=0.5).requires(model.graph, CONTEXT)
    PruneBlocks(bytes_=0.5).requires(model.graph, CONTEXT)


def test_only_and_skip_name_branches() -> None:
    source = blocks(0.3, 1, 0.1, 0.6)
    model, _ = pruned(source, X, ratio=0.99, only=("b1", "b3"))
    assert left(model) == {"b0", "b2"}
    model, _ = pruned(source, X, ratio=0.99, skip=("b[12]",))
    assert left(model) == {"b1", "b2"}
    with pytest.raises(UsageError, match="names `h0`, which the pass does not work on"):
        pruned(source, X, only=("h0",))


def test_bodies_of_if_are_left_alone() -> None:
    source = parse("""
    <opset_import: ["" : 17]>
    g (float[1,2] x, bool c) => (float[1,2] y) <float[2,2] w = {1,2,3,4}> {
      y = If (c) <
        then_branch = t () => (float[1,2] p) { h = MatMul (x, w) p = Add (h, x) },
        else_branch = f () => (float[1,2] q) { q = Relu (x) }
      >
    }""")
    _, reports = pruned(source, None)
    assert not whats(reports)


# ------------------------------------------------------------------- edges


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    constants = {"a": normal(8, 8)}
    nodes = [node("MatMul", ["x", "a"], "p"), node("Add", ["p", "x"], "y")]
    model, _ = pruned(net(nodes, constants, ["N", 8]), X, ratio=0.99)
    assert [n.op for n in model.graph.nodes] == ["Identity"]
    nodes = [
        node("Relu", ["x"], "r"),
        node("MatMul", ["r", "a"], "p"),
        node("Add", ["p", "r"], "y"),
    ]
    model, _ = pruned(net(nodes, constants, ["N", 8]), X, ratio=0.99)
    assert [n.op for n in model.graph.nodes] in (["Relu"], ["Relu", "Identity"])


def test_bytes_that_others_need_are_not_saved() -> None:
    constants = {"a": normal(8, 8, scale=0.3), "b": normal(8, 8, seed=2, scale=0.3)}
    nodes = [
        node("MatMul", ["x", "a"], "p"),
        node("Add", ["p", "x"], "s"),
        node("MatMul", ["s", "b"], "q"),
        node("Add", ["q", "s"], "t"),
        node("MatMul", ["t", "a"], "y"),
    ]
    source = net(nodes, constants, ["N", 8])
    model, _ = pruned(source, X, bytes_=0.5)
    assert "q" not in weights_of(model)
    assert share(source, model, "initializer_bytes") <= 0.5


def test_the_same_goes_every_time() -> None:
    models = [pruned(blocks(0.3, 1, 0.1, 0.6), X)[0].to_bytes() for _ in range(2)]
    assert models[0] == models[1]


def test_a_second_run_takes_its_share_of_what_is_left() -> None:
    both, _ = rewritten(blocks(0.3, 1, 0.1, 0.6), X, spec(ratio=0.5), spec(ratio=0.5))
    assert left(both) == {"b1"}


def test_the_command_takes_samples_from_a_file(tmp_path: Path) -> None:
    onnx.save(blocks(0.3, 1, 0.1), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=X)
    arguments = ["--passes", spec(ratio=0.34), "--no-latency", "--force", "-q"]
    paths = [str(tmp_path / name) for name in ("m.onnx", "o.onnx", "c.npz")]
    assert cli.run([*paths[:2], *arguments, "--calib", paths[2]]) == 0
    assert left(Model.load(onnx.load(paths[1]))) == {"b0", "b1"}
