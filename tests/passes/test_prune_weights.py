from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_nets import (
    Given,
    dense_net,
    net,
    node,
    normal,
    output_error,
    outputs,
    rewritten,
    samples,
    weights_of,
    whats,
    whys,
)
from strategies import models

from onnxslim import cli
from onnxslim.errors import UsageError
from onnxslim.io.check import check_model, signature
from onnxslim.io.model import Model
from onnxslim.passes.prune_weights import PruneWeights
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Policy
from onnxslim.runtime.measure.verify import RuntimeProver
from onnxslim.solvers.masks import Saliency
from support import CONTEXT, random_feeds, run

pytestmark = pytest.mark.slow

X = samples(300, 12)
HELD = samples(300, 12)[::-1] + samples(300, 12, seed=5) * 0.05
SMALL = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def dense(rows: int = 10, columns: int = 12, **more: object) -> onnx.ModelProto:
    weights = {"w": normal(columns, rows)}
    return net([node("MatMul", ["x", "w"], "y")], weights, ["N", columns], **more)  # type: ignore[arg-type]


def zeros(model: Model | onnx.ModelProto, name: str = "y") -> int:
    return int(np.count_nonzero(weights_of(model)[name] == 0))


def zeros_of_all(model: Model | onnx.ModelProto) -> dict[str, float]:
    return {name: float((w == 0).mean()) for name, w in weights_of(model).items()}


def spec(**options: object) -> str:
    return str(PruneWeights(**options))  # type: ignore[arg-type]


# ------------------------------------------------------------------- fires


@pytest.mark.parametrize("criterion", [*Saliency, "auto"])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.57, 0.7, 0.9, 0.999])
def test_a_layer_loses_the_share_of_its_weights_that_is_asked_for(
    ratio: float, criterion: str
) -> None:
    model, _ = rewritten(dense(), X, spec(ratio=ratio, criterion=criterion))
    if criterion == "wanda":  # each row by itself
        assert set((weights_of(model)["y"][0] == 0).sum(axis=1)) == {int(ratio * 12 + 1e-6)}
    else:
        assert zeros(model) == int(ratio * 120 + 1e-6)


@pytest.mark.parametrize("ratio", [0.1, 0.7, 0.9])
def test_without_data_the_smallest_go_and_the_rest_stays(ratio: float) -> None:
    source = dense()
    model, reports = rewritten(source, None, spec(ratio=ratio))
    before, after = weights_of(source)["y"], weights_of(model)["y"]
    gone = after == 0
    assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
    np.testing.assert_array_equal(after[~gone], before[~gone])
    (what,) = whats(reports)
    assert "by magnitude; relative weight error" in what


def test_the_report_gives_the_density_and_the_error() -> None:
    source = dense()
    model, reports = rewritten(source, X, spec(ratio=0.9))
    (what,) = whats(reports)
    assert what.startswith("kept 12 of 120 weights (10 %) by obs; relative output error ")
    said = float(what.rpartition(" ")[2])
    assert said == pytest.approx(output_error(source, model, X), rel=0.06)


@SMALL
@given(
    st.integers(1, 9),
    st.integers(2, 14),
    st.floats(0.05, 0.95),
    st.sampled_from([*Saliency]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_error_in_the_report_is_that_of_the_outputs(
    rows: int, columns: int, ratio: float, criterion: str, has_bias: bool, seed: int
) -> None:
    weights = {"w": normal(columns, rows, seed=seed)}
    if has_bias:
        weights["b"] = normal(rows, seed=seed + 1)
    nodes = [node("Gemm" if has_bias else "MatMul", ["x", *weights], "y")]
    source = net(nodes, weights, ["N", columns])
    x = samples(60, columns, seed=seed)
    model, reports = rewritten(source, x, spec(ratio=ratio, criterion=criterion))
    if not whats(reports):
        assert ratio * rows * columns < columns + 1 or ratio * columns < 1  # wanda goes by rows
        return
    said = float(whats(reports)[0].rpartition(" ")[2])
    ref, new = (outputs(m, x)["y"].astype(np.float64) for m in (source, model))
    whole = ref - ref.mean(axis=0) if has_bias else ref
    found = np.square(ref - new).sum() / np.square(whole).sum()
    assert said == pytest.approx(found, rel=0.06, abs=1e-9)


def test_each_criterion_costs_less_than_the_next_on_correlated_inputs() -> None:
    """OBS moves the others, OBD weighs by the inputs, magnitude does neither."""
    x = samples(500, 24, rank=3) * np.geomspace(0.2, 3, 24).astype(np.float32)
    errors: dict[str, list[float]] = {c: [] for c in ("obs", "obd", "magnitude", "random")}
    for seed in range(4):
        weights = {"w": normal(24, 20, seed=seed)}
        source = net([node("MatMul", ["x", "w"], "y")], weights, ["N", 24])
        for criterion, found in errors.items():
            model, _ = rewritten(source, x, spec(ratio=0.5, criterion=criterion))
            found.append(output_error(source, model, x))
    means = [float(np.mean(found)) for found in errors.values()]
    assert all(a < b for a, b in pairwise(means)), means
    assert means[0] < 0.2 * means[1]


def test_one_threshold_over_all_layers_takes_from_those_that_matter_least() -> None:
    """The second layer feeds an output that is a hundred times as large."""
    nodes = [
        node("MatMul", ["x", "v"], "a"),
        node("MatMul", ["x", "w"], "b"),
        node("Mul", ["b", "k"], "c"),
        node("Add", ["a", "c"], "y"),
    ]
    weights = {"v": normal(12, 10), "w": normal(12, 10, seed=2), "k": np.array(30, np.float32)}
    source = net(nodes, weights, ["N", 12])
    for ratio in (0.3, 0.5, 0.77):
        model, _ = rewritten(source, X, spec(ratio=ratio, scope="global", criterion="obd"))
        shares = zeros_of_all(model)
        assert zeros(model, "a") + zeros(model, "b") == int(ratio * 240)
        assert shares["a"] > shares["b"] + 0.2
    in_each, _ = rewritten(source, X, spec(ratio=0.5, criterion="obd"))
    over_all, _ = rewritten(source, X, spec(ratio=0.5, criterion="obd", scope="global"))
    assert output_error(source, over_all, X) < 0.5 * output_error(source, in_each, X)


@pytest.mark.parametrize("criterion", ["magnitude", "random", "wanda", "obs"])
@pytest.mark.parametrize("ratio", [0.3, 0.57, 0.7])
def test_one_threshold_over_all_layers_meets_the_share_over_all(
    ratio: float, criterion: str
) -> None:
    source = dense_net(12, 17, 7)
    model, _ = rewritten(source, X, spec(ratio=ratio, scope="global", criterion=criterion))
    total = 12 * 17 + 17 * 7
    slack = 17 + 7 if criterion == "wanda" else 0  # rows round down
    assert 0 <= int(ratio * total) - (zeros(model, "h0") + zeros(model, "y")) <= slack


def test_one_threshold_over_all_layers_needs_no_data() -> None:
    source = dense_net(12, 17, 7)
    model, _ = rewritten(source, None, spec(ratio=0.5, scope="global"))
    before, after = weights_of(source), weights_of(model)
    gone = max(np.abs(before[n][after[n] == 0]).max() for n in before)
    left = min(np.abs(before[n][after[n] != 0]).min() for n in before)
    assert gone <= left


@pytest.mark.parametrize("criterion", ["auto", "magnitude", "obd", "wanda", "random", "obs"])
@pytest.mark.parametrize(("pattern", "keep", "length"), [("2:4", 2, 4), ("1:3", 1, 3)])
def test_a_pattern_holds_for_each_run_of_neighbours(
    pattern: str, keep: int, length: int, criterion: str
) -> None:
    source = dense()
    model, reports = rewritten(source, X, spec(pattern=pattern, criterion=criterion))
    kept = (weights_of(model)["y"][0] != 0).reshape(10, -1, length)  # (rows, runs, length)
    assert (kept.sum(axis=2) == keep).all()
    assert f"kept {120 * keep // length} of 120" in whats(reports)[0]


def test_a_pattern_runs_along_the_inputs_of_a_conv_and_its_last_run_may_be_short() -> None:
    source = net([node("Conv", ["x", "w"], "y")], {"w": normal(5, 2, 3, 3)}, ["N", 2, 5, 5])
    model, _ = rewritten(source, samples(20, 2, 5, 5), spec(pattern="2:4"))
    kept = weights_of(model)["y"][0] != 0  # 18 columns: the last run has two
    assert (kept[:, :16].reshape(5, 4, 4).sum(axis=2) == 2).all()


def test_a_pattern_with_moved_weights_costs_less_than_with_the_largest() -> None:
    source = dense(20, 12)
    errors = [
        output_error(source, rewritten(source, X, spec(pattern="2:4", criterion=c))[0], X)
        for c in ("obs", "magnitude")
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("criterion", ["auto", "magnitude"])
def test_steps_end_at_the_same_share_and_are_told_one_by_one(criterion: str) -> None:
    source = dense_net(12, 17, 7)
    model, reports = rewritten(source, X, spec(ratio=0.8, steps=3, criterion=criterion))
    assert zeros(model, "h0") == int(0.8 * 12 * 17 + 1e-6)
    assert zeros(model, "y") == int(0.8 * 17 * 7 + 1e-6)
    said = whats(reports)
    assert [text.startswith("step: ") for text in said] == [True] * 4 + [False] * 2
    densities = [float(text.partition("(")[2].partition(" %")[0]) for text in said[::2]]
    # 1 - 0.8·(1 - (1 - t)³) at thirds
    np.testing.assert_allclose(densities, [43.7, 22.96, 20], atol=0.6)


def test_layers_may_have_shares_of_their_own() -> None:
    source = dense_net(12, 16, 16, 5)
    options = {"ratio": 0.5, "ratio_of": ("h0=0", "h*=0.75")}
    for scope in ("layer", "global"):
        model, _ = rewritten(source, X, spec(**options, scope=scope))
        assert zeros_of_all(model) == {"h0": 0.0, "h1": 0.75, "y": 0.5}


def test_only_and_skip_choose_layers() -> None:
    source = dense_net(12, 16, 16, 5)
    model, _ = rewritten(source, X, spec(only=("h*",)))
    assert zeros_of_all(model) == {"h0": 0.5, "h1": 0.5, "y": 0.0}
    model, _ = rewritten(source, X, spec(skip=("h*",)))
    assert zeros_of_all(model) == {"h0": 0.0, "h1": 0.0, "y": 0.5}


def test_the_original_output_as_aim_beats_the_present_one() -> None:
    source = dense_net(12, 24, 24, 6)
    errors = [
        output_error(source, rewritten(source, X, spec(ratio=0.6, aim=aim))[0], X)
        for aim in ("original", "own")
    ]
    assert errors[0] < errors[1]


def test_layers_of_one_shape_lose_different_weights_at_random() -> None:
    source = dense_net(16, 16, 16)
    model, _ = rewritten(source, None, "prune-weights:criterion=random")
    first, second = weights_of(model).values()
    assert ((first == 0) != (second == 0)).any()


def test_random_removal_depends_on_the_seed_alone() -> None:
    source = dense()

    def removed(seed: int) -> bytes:
        found = PassManager.parse(spec(criterion="random")).run(
            Model.load(source), Context(seed=seed), policy=Policy(force=True)
        )
        return found[0].to_bytes()

    assert removed(1) == removed(1)
    assert removed(1) != removed(2)


# ------------------------------------------------------------------- what is stored


@pytest.mark.parametrize(("ratio", "sparse"), [(0.3, False), (0.9, True)])
@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
def test_zeros_are_left_out_exactly_where_that_takes_fewer_bytes(
    tmp_path: Path, ratio: float, sparse: bool, x: np.ndarray | None
) -> None:
    source = dense(64)
    model, _ = rewritten(source, x, spec(ratio=ratio))
    proto = model.to_proto()
    assert bool(proto.graph.sparse_initializer) is sparse
    assert len(model.to_bytes()) <= len(source.SerializeToString())
    path = tmp_path / "pruned.onnx"
    model.save(path)
    again = Model.load(path)
    np.testing.assert_array_equal(outputs(again, X)["y"], outputs(model, X)["y"])
    np.testing.assert_array_equal(weights_of(again)["y"], weights_of(model)["y"])


@pytest.mark.parametrize(
    ("weight", "shape"),
    [
        ((16, 8, 3, 3), ["N", 8, 6, 6]),
        ((16, 1, 3, 3), ["N", 16, 6, 6]),
        ((16, 4, 5), ["N", 8, 9]),
    ],
)
def test_convs_of_any_kind_are_pruned_and_stored(weight: tuple[int, ...], shape: list[int]) -> None:
    group = shape[1] // weight[1]
    source = net([node("Conv", ["x", "w"], "y", group=group)], {"w": normal(*weight)}, shape)
    model, _ = rewritten(source, samples(20, *shape[1:]), spec(ratio=0.9))
    check_model(model)
    assert zeros(model) == int(0.9 * np.prod(weight) + 1e-6)
    assert model.to_proto().graph.sparse_initializer


@pytest.mark.parametrize("criterion", ["wanda", "magnitude", "obs"])
def test_groups_compete_with_each_other_except_by_wanda(criterion: str) -> None:
    weight = normal(16, 1, 3, 3) * np.geomspace(0.1, 10, 16).reshape(-1, 1, 1, 1)
    source = net(
        [node("Conv", ["x", "w"], "y", group=16)], {"w": weight.astype(np.float32)},
        ["N", 16, 6, 6],
    )  # fmt: skip
    model, _ = rewritten(source, samples(20, 16, 6, 6), spec(criterion=criterion, ratio=0.45))
    kept = (weights_of(model)["y"] != 0).sum(axis=(1, 2))
    if criterion == "wanda":
        assert set(kept) == {5}
    else:
        assert kept[0] < kept[-1]
        assert kept.sum() == 144 - 64


def test_a_weight_in_a_constant_node_is_pruned_too() -> None:
    value = onnx.numpy_helper.from_array(normal(12, 64))
    nodes = [node("Constant", [], "w", value=value), node("MatMul", ["x", "w"], "y")]
    source = net(nodes, {}, ["N", 12])
    model, _ = rewritten(source, X, spec(ratio=0.9))
    check_model(model)
    assert zeros(model) == int(0.9 * 12 * 64)
    assert output_error(source, model, X) < 0.3


def test_half_precision_weights_stay_so() -> None:
    source = dense(64, dtype=onnx.TensorProto.FLOAT16)
    source.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(normal(12, 64).astype(np.float16), "w")
    )
    model, _ = rewritten(source, X.astype(np.float16), spec(ratio=0.9))
    assert weights_of(model)["y"].dtype == np.float16
    assert zeros(model) == int(0.9 * 12 * 64)
    assert output_error(source, model, X.astype(np.float16)) < 0.3


def test_a_shared_weight_stays_shared() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "w"], "y")
    ]  # fmt: skip
    source = net(nodes, {"w": normal(12, 12, scale=0.4)}, ["N", 12])
    model, reports = rewritten(source, X, spec(ratio=0.8))
    assert len(whats(reports)) == 1
    held = [*model.to_proto().graph.initializer, *model.to_proto().graph.sparse_initializer]
    assert len(held) == 1
    assert zeros(model, "h") == zeros(model, "y") == int(0.8 * 144)


def test_a_weight_in_a_branch_is_pruned() -> None:
    source = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x, bool c) => (float[N, 2] y) {
            y = If (c) <
                then_branch = t () => (float[N, 2] r)
                    <float[2, 2] w = {1, 2, 3, 4}> { r = MatMul (x, w) },
                else_branch = e () => (float[N, 2] r) { r = Identity (x) }
            >
        }"""
    )
    model, reports = rewritten(source, None, spec())
    assert "kept 2 of 4" in whats(reports)[0]
    feeds = {"x": np.ones((1, 2), np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(outputs(model, feeds)["y"], [[3, 4]])


# ------------------------------------------------------------------- declines


@pytest.mark.parametrize("criterion", ["obs", "obd", "wanda"])
def test_criteria_that_need_data_say_so_without(criterion: str) -> None:
    made = PruneWeights(criterion=criterion)
    result, reports = rewritten(dense(), None, str(made))
    assert whats(reports) == []
    assert whys(reports) == [
        f"it needs calibration samples for criterion {criterion}; magnitude needs none: "
        "give --calib"
    ]
    assert result.to_bytes() == Model.load(dense()).to_bytes()


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_weight_with_as_many_zeros_is_left_as_it_is(ratio: float) -> None:
    """Run by the prover, which catches changes that are not reported."""
    weight = normal(12, 64)
    weight[np.abs(weight) < 1.7] = 0
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 12])
    model, prover = Model.load(source), RuntimeProver(latency=False)
    prover.begin(model)
    result, reports = PassManager.parse(spec(ratio=ratio)).run(
        model, CONTEXT, prover=prover, policy=Policy(force=True)
    )
    assert whats(reports) == []
    assert result.to_bytes() == model.to_bytes()
    assert whys(reports) == (["it has that many zeros already"] if ratio else [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, r"`ratio` .* in \[0, 1\)"),
        ({"pattern": "4:2"}, "`pattern` .*'n:m' with 0 < n < m"),
        ({"pattern": "x"}, "`pattern`"),
        ({"ratio_of": ("h0",)}, "`ratio-of` .*PATTERN=NUMBER"),
        ({"ratio_of": ("h0=1",)}, r"`ratio-of` .* in \[0, 1\)"),
        ({"criterion": "l1"}, "`criterion` .*magnitude"),
        ({"steps": 0}, "`steps` .*at least 1"),
    ],
)
def test_bad_options_are_refused_with_the_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PruneWeights(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "made",
    [
        PruneWeights(pattern="2:4"),
        PruneWeights(ratio_of=("/conv1/Conv*=0.25", "a:0=1e-3"), ratio=0.75),
        PruneWeights(only=("a+b", "c,d"), criterion="obd", steps=3, scope="global"),
    ],
)
def test_options_are_spelled_so_that_they_parse_back(made: PruneWeights) -> None:
    assert parse_pipeline(str(made)).passes == (made,)


def test_computed_weights_and_integers_say_why_not() -> None:
    nodes = [node("Relu", ["w"], "v"), node("MatMul", ["x", "v"], "y")]
    _, reports = rewritten(net(nodes, {"w": normal(12, 4)}, ["N", 12]), X, spec())
    assert whys(reports) == ["its weight is computed from constants by Relu: run simplify first"]


# ------------------------------------------------------------------- edges


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
def test_pruning_twice_ends_where_once_does(x: np.ndarray | None) -> None:
    source = dense(64)
    once, _ = rewritten(source, x, spec(ratio=0.6))
    twice, _ = rewritten(once, x, spec(ratio=0.6))
    more, _ = rewritten(once, x, spec(ratio=0.8))
    assert zeros(once) == zeros(twice) == int(0.6 * 12 * 64)
    assert zeros(more) == int(0.8 * 12 * 64)
    assert output_error(once, twice, X) < 1e-9
    kept = weights_of(more)["y"] != 0
    assert (weights_of(once)["y"][kept] != 0).all()


def test_two_prunings_in_one_pipeline_aim_at_the_same_original() -> None:
    source = dense_net(12, 24, 6)
    both, _ = rewritten(source, X, spec(ratio=0.3), spec(ratio=0.6))
    assert zeros_of_all(both) == pytest.approx({"h0": 0.6, "y": 0.6}, abs=0.01)
    onto, _ = rewritten(rewritten(source, X, spec(ratio=0.3))[0], X, spec(ratio=0.6))
    assert output_error(source, both, X) < 1.2 * output_error(source, onto, X)


def test_weights_of_inputs_that_are_always_zero_go_first() -> None:
    x = X.copy()
    x[:, :6] = 0
    source = dense()
    model, _ = rewritten(source, x, spec(ratio=0.5))
    gone = weights_of(model)["y"][0] == 0
    assert gone[:, :6].all()
    assert output_error(source, model, x) < 1e-9


@pytest.mark.parametrize("given_", [X[:1], X[:3], X * 0, X[:1] * 1e-20], ids=len)
@pytest.mark.parametrize("options", [{}, {"scope": "global"}, {"pattern": "2:4"}, {"steps": 2}])
def test_samples_that_say_little_are_no_obstacle(given_: Given, options: dict[str, object]) -> None:
    source = dense_net(12, 16, 5)
    model, _ = rewritten(source, given_, spec(**options))
    assert np.isfinite(outputs(model, X)["y"]).all()


def test_the_result_is_the_same_every_time() -> None:
    source = dense_net(12, 24, 6)
    for options in ({}, {"scope": "global"}, {"criterion": "random"}, {"pattern": "2:4"}):
        first, second = (rewritten(source, X, spec(**options))[0] for _ in range(2))
        assert first.to_bytes() == second.to_bytes()


@SMALL
@given(
    models(),
    st.floats(0.05, 0.95),
    st.sampled_from(["auto", "magnitude", "random"]),
    st.sampled_from(["layer", "global"]),
    st.sampled_from(["none", "1:2", "2:4"]),
    st.integers(1, 2),
    st.booleans(),
)
def test_random_models_stay_valid(
    source: onnx.ModelProto,
    ratio: float,
    criterion: str,
    scope: str,
    pattern: str,
    steps: int,
    has_data: bool,
) -> None:
    feeds = random_feeds(source)
    made = spec(ratio=ratio, criterion=criterion, scope=scope, pattern=pattern, steps=steps)
    before = Model.load(source)
    model, _ = rewritten(before, [feeds] * 2 if has_data else None, made)
    check_model(model)
    assert signature(model) == signature(before)
    assert [a.shape for a in run(model.to_proto(), feeds)] == [a.shape for a in run(source, feeds)]
    outputs(model, feeds)


# ------------------------------------------------------------------- the command


def test_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(dense_net(12, 64, 6), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    code = cli.run(
        [
            str(tmp_path / "model.onnx"),
            str(tmp_path / "out.onnx"),
            "--passes",
            "prune-weights:ratio=0.9",
            "--calib",
            str(tmp_path / "x.npz"),
            "--goal",
            "bytes",
            "--no-floor",
        ]
    )
    assert code == 0, capsys.readouterr()
    out = Model.load(tmp_path / "out.onnx")
    assert zeros_of_all(out) == pytest.approx({"h0": 0.9, "y": 0.9}, abs=0.01)
    assert (tmp_path / "out.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
    assert output_error(Model.load(tmp_path / "model.onnx"), out, HELD) < 0.9


def test_the_report_tells_of_weights_whose_inputs_are_always_zero() -> None:
    x = samples(200, 16)
    x[:, :12] = 0
    source = dense_net(16, 10)
    for criterion, expected in [("obs", 120), ("obd", 80)]:
        model, reports = rewritten(source, x, f"prune-weights:ratio=0.5:criterion={criterion}")
        (weight,) = weights_of(model).values()
        assert np.count_nonzero(weight == 0) == expected
        (what,) = whats(reports)
        told = f"({expected} of those that went have inputs that are zero on all calibration"
        assert told in what


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            "only=h",
            "Option `only` of `prune-weights` names `h`, which .* Did you mean `h0`",
        ),
        ("skip=y+zzz*", "Option `skip` of `prune-weights` names `zzz.`, which no layer"),
        ("ratio-of='h1=0.5'", "Option `ratio-of` of `prune-weights` names `h1`, which no layer"),
    ],
)
def test_a_pattern_that_matches_nothing_is_told(spec: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        rewritten(dense_net(16, 10, 4), None, f"prune-weights:{spec}")


def test_a_pattern_may_name_what_is_a_codebook_already() -> None:
    source = dense_net(16, 60, 60)
    _, reports = rewritten(source, None, "cluster-weights:only=h0,prune-weights:skip=h0")
    assert [what for what in whats(reports) if "kept 1,800" in what]
