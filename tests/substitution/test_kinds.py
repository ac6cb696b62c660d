"""Every kind of block by itself: its formulas, its gradients, its operators, where it starts."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import pytest
from layer_nets import net, node, outputs

from onnxslim.analysis.layer_models import count_macs, small_model
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.substitution.fitting import fitted, random_values, with_least_squares
from onnxslim.substitution.kinds.base import BlockKind, PositionGrid
from onnxslim.substitution.kinds.shuffle import shuffled_order
from onnxslim.substitution.kinds.table import KINDS
from onnxslim.substitution.measuring import patches_at
from onnxslim.substitution.patches.evidence import PatchEvidence
from onnxslim.substitution.patches.sketch import BlockCell, Sketch, Take, Values
from onnxslim.substitution.patches.terms import PatchMap
from onnxslim.substitution.written import written

pytestmark = pytest.mark.slow

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
SAME = BlockCell(8, 8, (3, 3), (1, 1), keeps_size=True)
FLOAT = np.dtype(np.float32)
SEEN = {
    "same": (SAME, ConvPatches(1, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
    "strided": (
        BlockCell(8, 12, (3, 3), (1, 1), keeps_size=False),
        ConvPatches(1, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    ),
    "dilated": (
        BlockCell(6, 8, (3, 3), (1, 1), keeps_size=True),
        ConvPatches(1, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),
    ),
    "unpadded": (
        BlockCell(8, 8, (3, 3), None, keeps_size=False),
        ConvPatches(1, (3, 3), (1, 1), (1, 1), (0, 0, 0, 0)),
    ),
    "even": (
        BlockCell(4, 8, (2, 4), None, keeps_size=False),
        ConvPatches(1, (2, 4), (2, 1), (1, 1), (0, 2, 1, 1)),
    ),
    "one axis": (
        BlockCell(8, 4, (5,), (2,), keeps_size=True),
        ConvPatches(1, (5,), (1,), (1,), (2, 2)),
    ),
    "three axes": (
        BlockCell(4, 4, (3, 1, 3), (1, 0, 1), keeps_size=False),
        ConvPatches(1, (3, 1, 3), (1, 1, 2), (1, 1, 1), (1, 0, 1, 1, 0, 1)),
    ),
    "automatic pads": (
        BlockCell(8, 8, (3, 3), None, keeps_size=False),
        ConvPatches(1, (3, 3), (2, 2), (1, 1), (0, 0, 0, 0), "SAME_UPPER"),
    ),
}
EVERY_PLACE = pytest.mark.parametrize("place", SEEN)


def drawn(cell: BlockCell, rows: int = 600, seed: int = 0) -> tuple[PatchEvidence, np.ndarray]:
    """Correlated inputs behind a Relu, and what a convolution with a decaying spectrum makes."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((cell.channels, cell.channels)) / cell.channels**0.5
    x = np.maximum(rng.standard_normal((rows, *cell.kernel, cell.channels)) @ mixing + 0.3, 0)
    left = rng.standard_normal((cell.outputs, cell.channels))
    weight = left[:, :, None] * (1 + 0.2 * rng.standard_normal((*left.shape, cell.taps)))
    y = np.einsum("ntc,oct->no", x.reshape(rows, cell.taps, -1), weight)
    return PatchEvidence(x.astype(np.float32), y.astype(np.float32)), weight


def sketched(kind: BlockKind, cell: BlockCell) -> Sketch:
    return kind.sketch(cell, kind.usual({}))


def as_model(kind: BlockKind, place: str, values: list[Values], size: int) -> onnx.ModelProto:
    """The operators of a block of one or several groups."""
    cell, patches = SEEN[place]
    pieces = written(sketched(kind, cell), values, patches, FLOAT)
    nodes, weights = [], {}
    for number, piece in enumerate(pieces):
        names = []
        for index, item in enumerate(piece.inputs):
            names.append(item if isinstance(item, str) else f"w{number}_{index}")
            if not isinstance(item, str):
                weights[names[-1]] = item
        nodes.append(node(piece.op, names, piece.output, **piece.attrs))
    channels = cell.channels * len(values)
    return net(nodes, weights, ["N", channels, *[size] * len(cell.kernel)])


@EVERY_KIND
@EVERY_PLACE
def test_formulas_are_what_the_operators_take(kind: BlockKind, place: str) -> None:
    cell, patches = SEEN[place]
    if kind.why_not(cell) is not None:
        return
    for sizes in kind.choices({}):
        sketch = kind.sketch(cell, sizes)
        assert kind.weights(cell, sizes) == sketch.weights()
        pieces = written(sketch, [random_values(sketch, 0)], patches, FLOAT)
        arrays = [item for piece in pieces for item in piece.inputs if not isinstance(item, str)]
        assert kind.weights(cell, sizes) == sum(a.size for a in arrays if a.ndim > 1)
        shape = (1, cell.channels, *[9] * len(cell.kernel))
        made = small_model(shape, [piece.as_op() for piece in pieces])
        found = outputs(made, np.zeros(shape, np.float32))["y"]
        assert found.shape[1] == cell.outputs
        grid = PositionGrid(shape[2:], found.shape[2:])
        assert kind.macs(cell, sizes, grid) == count_macs(made)


@EVERY_KIND
@EVERY_PLACE
def test_patches_give_what_the_operators_give(kind: BlockKind, place: str) -> None:
    cell, patches = SEEN[place]
    if kind.why_not(cell) is not None:
        return
    sketch = sketched(kind, cell)
    values = [with_order(sketch, random_values(sketch, seed), seed) for seed in (1, 2)]
    rng = np.random.default_rng(0)
    for groups in (1, 2):
        x = rng.standard_normal((2, groups * cell.channels, *[9] * len(cell.kernel)), np.float32)
        made = as_model(kind, place, values[:groups], 9)
        y = outputs(made, x)["y"]
        index = np.unravel_index(np.arange(prod((2, *y.shape[2:]))), (2, *y.shape[2:]))
        rows = patches_at(x, y.shape[2:], patches, index)
        parts = np.split(rows, groups, axis=-1)
        own = [sketch.outputs(p, v) for p, v in zip(parts, values, strict=False)]
        wanted = np.moveaxis(y, 1, -1)[index]
        found = np.concatenate(own, axis=1)
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def with_order(sketch: Sketch, values: Values, seed: int) -> Values:
    """The values with orders that move channels."""
    rng = np.random.default_rng(seed)
    takes = [step.output for step in sketch.steps if isinstance(step, Take)]
    return values | {name: rng.permutation(len(values[name])) for name in takes}


@EVERY_KIND
def test_gradients_are_those_of_differences(kind: BlockKind) -> None:
    sketch = sketched(kind, SAME)
    evidence, _ = drawn(SAME, 40)
    x, y = evidence.patches.astype(np.float64), evidence.outputs.astype(np.float64)
    rng = np.random.default_rng(3)
    values = {
        name: array if array.dtype.kind == "i" else array + 0.3 * rng.standard_normal(array.shape)
        for name, array in with_order(sketch, random_values(sketch, 5), 5).items()
    }

    def loss(point: Values) -> float:
        return float(np.square(sketch.outputs(x, point) - y).sum())

    tensors = sketch.tensors(x, values)
    found = sketch.gradients(tensors, values, 2 * (sketch.outputs(x, values) - y))
    assert found.keys() == {name for name, array in values.items() if array.dtype.kind == "f"}
    for name, gradient in found.items():
        way = 1e-6 * rng.standard_normal(gradient.shape)
        change = loss(values | {name: values[name] + way}) - loss(
            values | {name: values[name] - way}
        )
        assert change / 2 == pytest.approx(float((gradient * way).sum()), rel=1e-3, abs=1e-7)


@EVERY_KIND
@EVERY_PLACE
def test_a_fitted_block_is_far_nearer_than_a_random_one(kind: BlockKind, place: str) -> None:
    cell, _ = SEEN[place]
    if kind.why_not(cell) is not None:
        return
    sketch = sketched(kind, cell)
    both, weight = drawn(cell, 1200)
    evidence, held = both.first(600), PatchEvidence(both.patches[600:], both.outputs[600:])
    start = kind.start(sketch, PatchMap(evidence, weight))

    def lost(values: Values) -> float:
        return held.error(sketch.outputs(held.patches, values)) / held.energy

    closed = with_least_squares(sketch, evidence, start)
    found = lost(fitted(sketch, evidence, held, start))
    assert lost(random_values(sketch, 0)) > 5 * found
    assert lost(closed) < 0.8 * lost(with_least_squares(sketch, evidence, random_start(sketch)))
    assert found <= lost(closed)


def as_taps(evidence: PatchEvidence, cell: BlockCell) -> np.ndarray:
    return evidence.patches.reshape(len(evidence.patches), cell.taps, cell.channels)


def random_start(sketch: Sketch) -> Values:
    """Random values of all but the last Convs."""
    last = {step.output for step in sketch.finals}
    return {name: v for name, v in random_values(sketch, 0).items() if name not in last}


def test_separable_filters_return_what_a_separable_convolution_did() -> None:
    cell = SEEN["unpadded"][0]  # nothing is added to what the block returns
    rng = np.random.default_rng(0)
    filters = rng.standard_normal((cell.channels, cell.taps))
    weight = rng.standard_normal((cell.outputs, cell.channels))[:, :, None] * filters
    evidence, _ = drawn(cell)
    y = np.einsum("ntc,oct->no", as_taps(evidence, cell), weight).astype(np.float32)
    evidence = PatchEvidence(evidence.patches, y)
    for name in ("separable", "grouped", "mobilenet-v2"):
        kind = KINDS[name]
        sketch = sketched(kind, cell)
        values = with_least_squares(
            sketch, evidence, kind.start(sketch, PatchMap(evidence, weight))
        )
        error = evidence.error(sketch.outputs(evidence.patches, values)) / evidence.energy
        assert error < 1e-4, name


def test_fire_gives_the_kernel_to_the_outputs_that_need_it() -> None:
    cell = SAME
    evidence, weight = drawn(cell)
    weight = weight.copy()
    weight[::2, :, :4] = weight[::2, :, 5:] = 0  # every second output sees the center alone
    y = np.einsum("ntc,oct->no", as_taps(evidence, cell), weight).astype(np.float32)
    sketch = sketched(KINDS["fire"], cell)
    found = KINDS["fire"].start(sketch, PatchMap(PatchEvidence(evidence.patches, y), weight))
    places = found["ordered"]
    assert sorted(places[::2]) == list(range(cell.outputs // 2))


def test_a_run_starts_from_the_nearest_linear_map() -> None:
    cell = SAME
    evidence, weight = drawn(cell, 2000)
    found = PatchMap(evidence, None).weight
    np.testing.assert_allclose(found, weight, atol=0.05 * np.abs(weight).max())


def test_channels_are_dealt_to_every_group() -> None:
    order = shuffled_order(8, 2)
    assert list(order) == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    ("name", "place", "why"),
    [
        ("fire", "unpadded", "its pads do not keep sizes"),
        ("fire", "even", "its pads do not keep sizes"),
        ("effnet", "one axis", "only one kernel axis is longer than 1"),
    ],
)
def test_a_kind_says_what_it_cannot_do(name: str, place: str, why: str) -> None:
    assert why in str(KINDS[name].why_not(SEEN[place][0]))
