from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from layer_nets import runs
from onnx import numpy_helper
from residual_nets import ENDS, NORMS, STARTS, WIDTH, ResidualNet, inputs_for, residual_net

from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.passes.prune_residual_stream import PruneResidualStream
from onnxslim.pipeline.execution import run_pass
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity, PassResult
from onnxslim.runtime.evaluate import evaluate
from support import run


def pruned(
    source: onnx.ModelProto, *, count: int = 40, **options: object
) -> tuple[onnx.ModelProto, PassResult]:
    """The model after the pass, fitted to `count` samples."""
    model, reference = Model.load(source), Model.load(source)
    for item in (model, reference):
        infer_shapes(item)
    context = Context(
        evaluate=evaluate,
        calibration=runs(inputs_for(source, count)),
        model=model,
        target=reference,
    )
    made = PruneResidualStream(**{"align": 1, **options})  # type: ignore[arg-type]
    result = run_pass(made, model, context)
    after = model.to_proto() if result.changed else source
    onnx.checker.check_model(after, full_check=True)
    return after, result


def difference(a: onnx.ModelProto, b: onnx.ModelProto, seed: int = 5) -> float:
    """Largest difference of outputs, as a share of their range."""
    x = inputs_for(a, 8, seed)
    (before,), (after,) = run(a, {"x": x}), run(b, {"x": x})
    assert before.shape == after.shape
    return float(np.abs(before - after).max() / np.ptp(before))


def sizes(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    return [tuple(item.dims) for item in model.graph.initializer]


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# ------------------------------------------------------------------- fires

NO_TABLE = ("pictures", "tied")

FORMS = [
    *((NORMS[0], start, end) for start in STARTS for end in ENDS if (start, end) != NO_TABLE),
    *((norm, STARTS[place % 2], ENDS[place % 3]) for place, norm in enumerate(NORMS[1:])),
]


@pytest.mark.parametrize(("norm", "start", "end"), FORMS)
def test_a_rotation_changes_no_output(norm: str, start: str, end: str) -> None:
    source = residual_net(norm, start, end)
    after, result = pruned(source, ratio=0)
    assert difference(source, after) < 1e-5
    assert result.fidelity is Fidelity.CLOSE
    kept = {numpy_helper.to_array(item).tobytes() for item in source.graph.initializer}
    values = [numpy_helper.to_array(item) for item in after.graph.initializer]
    moved = [v for v in values if v.size >= WIDTH**2 and v.tobytes() not in kept]
    assert len(moved) > 4
    added = {"hidden": 1, "sums": 1, "tied": 1}.get(end, 0)
    assert len(after.graph.node) == len(source.graph.node) + added


MOVES: tuple[Callable[[ResidualNet, str], str], ...] = (
    lambda net, x: net.add("Transpose", net.add("Transpose", x, perm=[2, 0, 1]), perm=[1, 2, 0]),
    lambda net, x: net.add("Concat", _part(net, x, 1, 99), _part(net, x, 0, 1), axis=1),
    lambda net, x: net.add("Mul", x, np.array(0.7, np.float32)),
    lambda net, x: net.add("Div", x, net.add("Exp", _part(net, net.weight(1, 6, 1), 0, 1))),
    lambda net, x: net.add("Sub", net.written(1, WIDTH), x),
    lambda net, x: net.add("Sum", x, net.add("Neg", net.add("Identity", x)), x),
    lambda net, x: net.add("Squeeze", net.add("Unsqueeze", x, np.array([1])), np.array([1])),
    lambda net, x: net.add(
        "Reshape", net.add("Reshape", x, np.array([0, 1, -1, WIDTH])), np.array([0, -1, WIDTH])
    ),
)


def _part(net: ResidualNet, x: str | np.ndarray, start: int, end: int) -> str:
    return net.add("Slice", x, *(np.array([n]) for n in (start, end, 1)))


@pytest.mark.parametrize("seed", range(5))
def test_what_commutes_with_a_rotation_is_followed_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = ResidualNet(str(rng.choice(NORMS)), seed=seed)
    start, end = str(rng.choice(STARTS)), str(rng.choice([e for e in ENDS if e != "tied"]))
    x = net.words() if start == "words" else net.pictures()
    for _ in range(3):
        for move in rng.permutation(len(MOVES))[:3]:
            x = MOVES[move](net, x)
        x = net.branches(x, 1)
    source = net.model(net.end(x, end), 2 if end in ("classes", "mean") else 3)
    after, result = pruned(source, ratio=0)
    assert result.changed, result.skips
    assert difference(source, after) < 1e-5
    small, _ = pruned(source, ratio=0.3, reconstruct=False)
    assert np.isfinite(difference(source, small))
    assert sum(map(np.prod, sizes(small))) < sum(map(np.prod, sizes(source)))


@pytest.mark.parametrize(
    ("norm", "reconstruct"), [*((norm, False) for norm in NORMS), (NORMS[0], True)]
)
def test_columns_in_which_a_stream_does_not_vary_cost_nothing(
    norm: str, *, reconstruct: bool
) -> None:
    source = residual_net(norm, rank=5)
    mean = int("Layer" in norm)  # a column keeps the mean apart
    after, result = pruned(source, ratio=1 - (5 + mean) / WIDTH, reconstruct=reconstruct)
    assert difference(source, after) < 1e-4
    assert result.fidelity is Fidelity.LOSSY
    assert not any(WIDTH in shape for shape in sizes(after))
    assert ops(after) == ops(source)


@pytest.mark.parametrize("norm", [NORMS[0], NORMS[3]])
def test_a_refit_of_the_readers_lowers_the_error(norm: str) -> None:
    source = residual_net(norm, end="hidden")
    errors = [
        difference(source, pruned(source, ratio=0.4, count=200, reconstruct=fits)[0])
        for fits in (True, False)
    ]
    assert errors[0] < errors[1]


def test_a_tied_table_stays_one_table() -> None:
    source = residual_net(end="tied")
    after, _ = pruned(source, ratio=0.5)
    (table,) = {n.input[0] for n in after.graph.node if n.op_type == "Transpose"} & {
        n.input[0] for n in after.graph.node if n.op_type == "Gather"
    }
    assert (20, WIDTH // 2) in sizes(after)
    assert (20, WIDTH) not in sizes(after)
    assert table


def test_what_is_left_is_a_multiple() -> None:
    after, result = pruned(residual_net(), ratio=0.3, align=4)
    assert "has 8 of 12 columns" in result.changes[0].what
    assert (20, 8) in sizes(after)


def test_a_stream_behind_a_normalization_gets_a_product() -> None:
    """As in CLIP and Swin, where the embeddings are normalized before they are summed up."""
    net = ResidualNet()
    source = net.model(net.end(net.branches(net.normalized(net.words())), "classes"))
    after, _ = pruned(source, ratio=0)
    assert difference(source, after) < 1e-5
    assert ops(after).count("MatMul") == ops(source).count("MatMul") + 1


def test_a_stream_that_begins_behind_an_activation_gets_a_product() -> None:
    """As in the encoder of Whisper, where Convs with Gelu write the stream."""
    net = ResidualNet()
    x = net.add("Add", net.add("Erf", net.words()), net.weight(1, WIDTH))
    source = net.model(net.end(net.branches(x), "classes"))
    after, _ = pruned(source, ratio=0)
    assert difference(source, after) < 1e-5
    assert ops(after).count("MatMul") == ops(source).count("MatMul") + 1
    small, result = pruned(source, ratio=0.5)
    assert (WIDTH, WIDTH // 2) in sizes(small)
    assert result.changes


def test_linear_operators_behind_a_normalization_are_followed() -> None:
    """Zeros of a Pad, windows, averages, and a layer that reads all positions at once."""
    net = ResidualNet()
    x = net.normalized(net.branches(net.pictures()))
    padded = net.add("Pad", x, np.array([0, 0, 0, 0, 1, 0]), np.array(0, np.float32))
    windows = net.add("Reshape", padded, np.array([0, 3, 2, WIDTH]))
    means = net.add("ReduceMean", windows, axes=[2], keepdims=0)
    flat = net.add("Reshape", net.add("Mul", means, np.array(0.5, np.float32)), np.array([0, -1]))
    source = net.model(net.add("MatMul", flat, net.weight(3 * WIDTH, 4)))
    after, _ = pruned(source, ratio=0)
    assert difference(source, after) < 1e-5
    assert ops(after) == ops(source)
    small, _ = pruned(source, ratio=0.5)
    assert (3 * WIDTH // 2, 4) in sizes(small)


def test_four_neighbours_are_merged_and_normalized_as_in_swin() -> None:
    net = ResidualNet()
    x = net.add("Slice", net.branches(net.pictures()), *map(np.array, ([1], [5], [1])))
    joined = net.add("Reshape", x, np.array([0, 1, 4 * WIDTH]))
    scale, bias = net.weight(1, 4 * WIDTH)[0], net.weight(1, 4 * WIDTH)[0]
    merged = net.add("LayerNormalization", joined, scale, bias)
    source = net.model(net.add("MatMul", merged, net.weight(4 * WIDTH, 5)), 3)
    after, _ = pruned(source, ratio=0)
    assert difference(source, after) < 1e-5


# ------------------------------------------------------------------- declines

Edit = Callable[[ResidualNet, str], str]

DECLINED: dict[str, tuple[Edit, str]] = {
    "not linear": (
        lambda net, x: net.add("Add", x, net.add("Relu", x)),
        "(Relu) is not linear in it",
    ),
    "largest": (
        lambda net, x: net.add("Add", x, net.add("ReduceMax", x, axes=[1], keepdims=1)),
        "(ReduceMax) is not linear in it",
    ),
    "one by one": (
        lambda net, x: net.add("Mul", x, 1 + net.weight(1, WIDTH)[0]),
        "(Mul) treats its channels one by one",
    ),
    "a number": (lambda net, x: net.add("Add", x, np.float32(3)), "the same number for all"),
    "a constant behind a norm": (
        lambda net, x: net.add("Add", net.normalized(x), net.weight(1, WIDTH)[0]),
        "joins a constant with what a normalization returns",
    ),
    "whole numbers": (
        lambda net, x: net.add("Add", x, net.add("Cast", net.add("Cast", x, to=6), to=1)),
        "(Cast) is not linear in it",
    ),
    "filled with ones": (
        lambda net, x: net.add(
            "Concat", x, net.add("Pad", x, np.array([0, 1, 0, 0, 0, 0]), np.float32(1)), axis=1
        ),
        "(Pad) is not linear in it",
    ),
    "grouped": (
        lambda net, x: _grouped(net, net.add("Transpose", x, perm=[0, 2, 1])),
        "(Conv) has groups of channels",
    ),
    "its square": (
        lambda net, x: net.add("Add", x, net.add("Mul", x, x)),
        "(Mul) is not linear in it",
    ),
    "reversed": (
        lambda net, x: net.add("Gather", x, np.arange(WIDTH)[::-1].copy(), axis=2),
        "holds a part of its channels",
    ),
    "joined with an input": (
        lambda net, x: net.add("Add", x, _given(net)),
        "joins them with `z`",
    ),
}


def _grouped(net: ResidualNet, x: str) -> str:
    y = net.add("Conv", x, net.weight(WIDTH, WIDTH // 2, 1), group=2)
    return net.add("Transpose", y, perm=[0, 2, 1])


def _given(net: ResidualNet) -> str:
    net.inputs.append(onnx.helper.make_tensor_value_info("z", 1, [1, 1, WIDTH]))
    return "z"


@pytest.mark.parametrize(("edit", "why"), DECLINED.values(), ids=DECLINED)
def test_a_stream_that_does_not_commute_with_a_rotation_stays(edit: Edit, why: str) -> None:
    net = ResidualNet()
    source = net.model(net.end(net.branches(edit(net, net.words())), "classes"))
    model = Model.load(source)
    infer_shapes(model)
    context = Context(evaluate=evaluate, calibration=runs(inputs_for(source, 4)), model=model)
    before = model.to_proto().SerializeToString()
    result = run_pass(PruneResidualStream(), model, context)
    assert not result.changed
    assert any(why in skip.why for skip in result.skips), result.skips
    assert model.to_proto().SerializeToString() == before


def test_attention_among_normalized_values_keeps_them_all() -> None:
    net = ResidualNet()
    x = net.normalized(net.words())
    scores = net.add("MatMul", x, net.add("Transpose", x, perm=[0, 2, 1]))
    _, result = pruned(net.model(net.add("MatMul", scores, net.weight(6, 2)), 3))
    assert not result.changed
    assert any("reads it without weights" in skip.why for skip in result.skips), result.skips


def test_sums_that_are_normalized_themselves_stay() -> None:
    """As in BERT."""
    net = ResidualNet()
    x = net.words()
    for _ in range(3):
        branch = net.add("Relu", net.add("MatMul", x, net.weight(WIDTH, WIDTH)))
        x = net.normalized(net.add("Add", x, net.add("MatMul", branch, net.weight(WIDTH, WIDTH))))
    after, result = pruned(net.model(x, 3))
    assert not result.changed
    why = "what 2 of 3 normalizations return is part of the stream itself"
    assert any(why in skip.why for skip in result.skips), result.skips
    assert len(ops(after)) == len(net.nodes)


def test_a_stream_that_is_narrower_than_the_multiple_stays() -> None:
    _, result = pruned(residual_net(), align=16)
    assert not result.changed
    assert any("no multiple of 16 columns" in skip.why for skip in result.skips), result.skips


def test_a_net_without_normalizations_is_declined() -> None:
    net = ResidualNet()
    _, result = pruned(net.model(net.add("MatMul", net.words(), net.weight(WIDTH, 2)), 3))
    assert not result.changed
    assert any("no normalization that is known" in skip.why for skip in result.skips)


def test_it_asks_for_samples() -> None:
    assert PruneResidualStream().needs_calibration() is not None
    with pytest.raises(UsageError, match="ratio"):
        PruneResidualStream(ratio=1.0)
