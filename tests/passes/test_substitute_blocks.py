from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from fake_stopwatch import FakeStopwatch
from layer_nets import FORCE, REPRODUCERS, net, node, normal, outputs, runs, samples, whats
from split_nets import ops, split, why_of

from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.passes.substitute_blocks import SubstituteBlocks
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Goal
from onnxslim.runtime.evaluate import evaluate
from onnxslim.substitution.kinds.table import KINDS

pytestmark = pytest.mark.slow

X = samples(60, 8, 8, 8)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def conv(*, outs: int = 8, group: int = 1, rank: int = 8, **attrs: object) -> onnx.ModelProto:
    """A convolution whose kernels are near to products of filters and mixes."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((outs, 8 // group, 1, 1)) * rng.standard_normal((1, 8 // group, 3, 3))
    w = (w + 0.05 * rng.standard_normal(w.shape)).astype(np.float32)
    attrs = {"pads": [1, 1, 1, 1], "group": group, **attrs}
    nodes = [node("Conv", ["x", "w", "b"], "c", **attrs), node("Relu", ["c"], "y")]
    return net(nodes, {"w": w, "b": normal(outs)}, ["N", 8, 8, 8])


def two_convs() -> onnx.ModelProto:
    weights = {f"w{i}": normal(8, 8, 3, 3, seed=i, scale=0.15) for i in range(2)}
    nodes = [
        node("Conv", ["x", "w0"], "c0", pads=[1] * 4),
        node("Relu", ["c0"], "r"),
        node("Conv", ["r", "w1"], "y", pads=[1] * 4),
    ]
    return net(nodes, weights, ["N", 8, 8, 8])


def relative_error(source: onnx.ModelProto, model: Model, x: np.ndarray = X[:20]) -> float:
    wanted, found = outputs(source, x)["y"], outputs(model, x)["y"]
    assert wanted.shape == found.shape
    return float(np.square(wanted - found).mean() / wanted.var())


# ------------------------------------------------------------------- fires


@EVERY_KIND
@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"outs": 12},
        {"group": 2},
    ],
    ids=["plain", "strided", "dilated", "wider", "grouped"],
)
def test_a_block_of_each_kind_takes_the_place(kind: str, attrs: dict[str, object]) -> None:
    source = conv(**attrs)  # type: ignore[arg-type]
    spec = f"substitute-blocks:block={kind}:energy=0.01:expand=1"
    model, reports = split(source, X, spec)
    assert "Relu" in ops(model)
    assert len(ops(model)) > 2, why_of(reports)
    assert relative_error(source, model) < 0.7


def test_the_original_nodes_keep_their_names() -> None:
    source = conv()
    model, _ = split(source, X, "substitute-blocks:block=separable")
    assert [t.name for t in model.graph.outputs] == ["y"]
    assert any(t.name == "c" for n in model.graph.nodes for t in n.outputs)
    assert ops(model) == ["Conv", "Conv", "Relu"]
    assert relative_error(source, model) < 0.05


def test_auto_takes_what_gains_most_and_keeps_enough() -> None:
    model, reports = split(conv(), X, "substitute-blocks:energy=0.9")
    assert ops(model) != ["Conv", "Relu"], why_of(reports)
    (what,) = whats(reports)
    assert "on samples held back" in what
    assert relative_error(conv(), model) < 0.15


def test_a_run_becomes_one_block() -> None:
    many = samples(150, 8, 8, 8)
    spec = "substitute-blocks:block=mobilenet-v2:convolutions=2:energy=0.1"
    model, reports = split(two_convs(), many, spec)
    assert ops(model) == ["Conv", "Relu", "Conv", "Relu", "Conv", "Add"], why_of(reports)
    assert "2 convolutions replaced by" in whats(reports)[0]
    assert relative_error(two_convs(), model) < 0.9


def test_a_later_block_makes_up_for_an_earlier_one() -> None:
    """The second convolution is fitted to the original outputs on the inputs it gets now."""
    both = "substitute-blocks:block=grouped:energy=0.01"
    model, _ = split(two_convs(), X, both)
    first, _ = split(two_convs(), X, f"{both}:only=c0")
    second, _ = split(first, X, f"{both}:only=y")  # fitted to the changed model alone
    assert relative_error(two_convs(), model) < relative_error(two_convs(), second) + 1e-3


@pytest.mark.parametrize("budget", ["macs=0.4", "latency=0.4", "bytes=0.4"])
def test_a_budget_is_kept(budget: str) -> None:
    source = two_convs()
    model, reports = split(source, X, f"substitute-blocks:{budget}")
    changed = whats(reports)
    assert changed, why_of(reports)
    before = sum(a.size for a in (normal(8, 8, 3, 3), normal(8, 8, 3, 3)))
    after = sum(
        t.values.size
        for n in model.graph.nodes
        for t in n.inputs
        if n.op == "Conv" and hasattr(t, "values") and t.values.ndim == 4
    )
    assert after <= 0.45 * before


def test_what_timing_chose_is_spelled_out() -> None:
    source = two_convs()
    model, reports = split(source, X, "substitute-blocks:energy=0.3:skip=c0")
    (resolved,) = (report.resolved for report in reports if report.resolved)
    assert "plan='y=" in resolved
    again, _ = split(source, X, resolved, timed=False)
    assert again.to_bytes() == model.to_bytes()


# ------------------------------------------------------------------- declines


def test_without_samples_nothing_happens() -> None:
    model, reports = split(conv(), None, "substitute-blocks")
    assert ops(model) == ["Conv", "Relu"]
    assert "needs calibration samples to fit blocks to" in str(reports)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("block=separable:energy=1", "no block that pays keeps 1 of its output"),
        ("block=mobilenet-v2:expand=6", "no block has fewer weights than it"),
        ("plan=other=separable/1", "it is not in `plan`"),
        ("block=separable:skip=c", "`only` and `skip` leave it out"),
    ],
)
def test_why_a_place_stays_as_it_is(spec: str, why: str) -> None:
    if spec.startswith("plan"):
        source = two_convs()
        spec = "plan='c0=separable/1'"
    else:
        source = conv()
    _, reports = split(source, X, f"substitute-blocks:{spec}")
    assert any(why in text for text in why_of(reports).values()), why_of(reports)


def test_a_block_that_is_slower_stays_out() -> None:
    class Slow(FakeStopwatch):
        def _pair(self, before: int | None, after: int | None):  # type: ignore[no-untyped-def]
            return super()._pair(after, before)

    source = conv()
    model, reports = split(source, X, "substitute-blocks:block=separable", stopwatch=Slow())
    assert ops(model) == ["Conv", "Relu"]
    assert "no block is faster as measured: the best, separable/1 is not" in why_of(reports)["c"]
    smaller, _ = split(
        source, X, "substitute-blocks:block=separable", stopwatch=Slow(), goal=Goal.BYTES
    )
    assert ops(smaller) == ["Conv", "Conv", "Relu"]


def test_a_name_that_no_convolution_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`only` of `substitute-blocks` names `typo`"):
        split(conv(), X, "substitute-blocks:only=typo")


@pytest.mark.parametrize(
    "spec", ["block=other", "plan=c=fire", "plan=c=shuffle/0.5", "macs=0.5:latency=0.5"]
)
def test_bad_options_are_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        PassManager.parse(f"substitute-blocks:{spec}")


# ------------------------------------------------------------------- edges


def test_an_output_of_the_graph_keeps_its_name() -> None:
    w = normal(8, 8, 3, 3, scale=0.1)
    source = net([node("Conv", ["x", "w"], "y", pads=[1] * 4)], {"w": w}, ["N", 8, 8, 8])
    model, _ = split(source, X, "substitute-blocks:block=shuffle-v2:energy=0.05:squeeze=0.25")
    assert [t.name for t in model.graph.outputs] == ["y"]
    assert ops(model)[-1] == "Gather"


def test_open_sizes_are_those_of_the_samples() -> None:
    w = normal(8, 8, 3, 3, scale=0.1)
    source = net([node("Conv", ["x", "w"], "y", pads=[1] * 4)], {"w": w}, ["N", 8, "H", "W"])
    model, reports = split(
        source,
        X,
        "substitute-blocks:block=separable:energy=0.05",
        stopwatch=FakeStopwatch(symbol=8),
    )
    assert ops(model) == ["Conv", "Conv"], why_of(reports)


def test_half_precision_stays() -> None:
    source = two_convs()
    for tensor in source.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    half = onnx.TensorProto.FLOAT16
    source.graph.input[0].type.tensor_type.elem_type = half
    source.graph.output[0].type.tensor_type.elem_type = half
    del source.graph.value_info[:]
    model, reports = split(
        source, X.astype(np.float16), "substitute-blocks:block=grouped:energy=0.05"
    )
    stored = {str(t.dtype) for n in model.graph.nodes for t in n.inputs if hasattr(t, "values")}
    assert len(ops(model)) == 5, why_of(reports)
    assert "float16" in stored


def test_a_softer_pass_keeps_more() -> None:
    softer = SubstituteBlocks(energy=0.5).softened(0.5)
    assert softer == SubstituteBlocks(energy=0.75)
    assert SubstituteBlocks(macs=0.4).softened(0.5) == SubstituteBlocks(macs=0.7)
    assert SubstituteBlocks(plan=("c=separable/1",)).softened(0.5) is None


# ------------------------------------------------------------------- training


def test_training_blocks_alone_brings_them_nearer() -> None:
    pytest.importorskip("torch")
    from onnxslim.runtime.training.trainer import SampleTrainer

    source, spec = two_convs(), "substitute-blocks:block=effnet:energy=0.01"
    errors = []
    for text in (spec, f"{spec}:blockwise=2"):
        model = Model.load(source)
        context = Context(
            evaluate=evaluate,
            calibration=runs(X),
            trainer=SampleTrainer({"x": X}, threads=1),
            stopwatch=FakeStopwatch(),
        )
        made, reports = PassManager.parse(text).run(
            model, context, policy=replace(FORCE), reproducers=REPRODUCERS
        )
        errors.append(relative_error(source, made))
        if "blockwise" in text:
            assert all("trained alone" in what for what in whats(reports))
    assert errors[1] < errors[0]


def test_blocks_learn_together_behind_it() -> None:
    stages = SubstituteBlocks(finetune=2.0).unrolled()
    assert [stage.name for stage in stages] == ["substitute-blocks", "finetune"]
