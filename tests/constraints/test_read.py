"""Each stored weight gets the record of what it obeys, and other constants say why they stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import conv_and_dense, net, node, normal, samples

from onnxslim.api import compress
from onnxslim.constraints.dense import dense_twin
from onnxslim.constraints.read import Constraints, read_constraints
from onnxslim.constraints.stored import (
    BiasWeight,
    FreeWeight,
    GridWeight,
    LevelCodes,
    LevelWeight,
    ScaleWeight,
    SparseWeight,
    StoredWeight,
    TableWeight,
    TiedWeight,
)
from onnxslim.io.model import Model
from onnxslim.runtime.session import open_session
from onnxslim.tools.layer_figures import layer_figures
from support import parse

X = samples(64, 24)


def constraints(source: onnx.ModelProto) -> Constraints:
    return read_constraints(Model.load(source).graph)


def kinds(source: onnx.ModelProto) -> dict[str, type[StoredWeight]]:
    return {item.name: type(item) for item in constraints(source).weights}


def product(weight: np.ndarray) -> onnx.ModelProto:
    """A MatMul by `w`."""
    return net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 24])


def pruned(share: float) -> np.ndarray:
    weight = normal(24, 40)
    weight[np.abs(weight) < np.quantile(np.abs(weight), share)] = 0
    return weight


TERNARY = np.array([-0.3, 0, 0.7], np.float32)[np.random.default_rng(1).integers(0, 3, (24, 40))]
POWERS = np.array([-1, -0.25, 0, 0.5], np.float32)[
    np.random.default_rng(1).integers(0, 4, (24, 40))
]


@pytest.mark.parametrize(
    ("weight", "kind"),
    [
        (normal(24, 40), FreeWeight),
        (pruned(0.5), SparseWeight),
        (TERNARY, TiedWeight),
        (POWERS, LevelWeight),
        (np.ones((24, 40), np.float32), FreeWeight),
    ],
    ids=["free", "zeros", "few values", "powers of two", "not trained yet"],
)
def test_numbers_of_a_float_weight_tell_its_kind(
    weight: np.ndarray, kind: type[StoredWeight]
) -> None:
    assert kinds(product(weight)) == {"w": kind}


def test_equal_values_are_tied_and_zero_stays() -> None:
    (found,) = constraints(product(TERNARY)).weights
    assert isinstance(found, TiedWeight)
    np.testing.assert_array_equal(found.codes == -1, TERNARY == 0)
    assert all(np.unique(TERNARY[found.codes == code]).size == 1 for code in (0, 1))


def test_a_weight_that_two_nodes_read_is_one_record() -> None:
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "w"], "y")]
    (found,) = constraints(net(nodes, {"w": normal(24, 24)}, ["N", 24])).weights
    assert found.readers == ("h", "y")


def test_a_weight_behind_movement_is_the_stored_constant() -> None:
    nodes = [
        node("Transpose", ["w"], "t"),
        node("Reshape", ["t", "s"], "r"),
        node("MatMul", ["x", "r"], "y"),
    ]
    weights = {"w": normal(24, 40), "s": np.array([24, 40])}
    assert kinds(net(nodes, weights, ["N", 24])) == {"w": FreeWeight}


OPERATORS = """<opset_import: ["" : 17]>
    g (float[N, 8, 4] x, int64[N, 8] ids) => (float[N, 8, 4] y)
    <float[4] gamma = {0.1, 0.2, 0.3, 0.4}, float[4] beta = {0, 0, 0, 0},
     float[4, 4] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3, 1.4, 1.6, 1.7,
     1.8},
     float[4] b = {0.1, 0.2, 0.3, 0.4}, float[3, 4] table = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8,
     0.9, 1.1, 1.2, 1.3}, float scale = {0.3}, float[1, 8, 4] corners = {0.5, 1.5, 2.5, 3.5, 4.5,
     5.5, 6.5, 7.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5,
     0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5}, float[4] mean = {0.485, 0.456, 0.406, 0.3},
     float[8, 1] mask = {0, 0, 0, 0, -1000, -1000, -1000, -1000}, float[1, 1, 4] gain = {0.1, 0.2,
     0.3, 0.7}, float[1] slope = {0.25}>
    {
        c = Sub (x, mean)
        e = Gather (table, ids)
        s = Add (c, e)
        n = LayerNormalization (s, gamma, beta)
        h = MatMul (n, w)
        hb = Add (h, b)
        a = Mul (hb, scale)
        m = Add (a, mask)
        o = Add (m, corners)
        p = PRelu (o, slope)
        y = Mul (p, gain)
    }"""


def test_places_tell_weights_from_other_constants() -> None:
    found = constraints(parse(OPERATORS))
    names = {item.name for item in found.weights}
    assert names == {"table", "gamma", "beta", "w", "b", "gain", "slope"}
    assert found.others == {
        "mean": "it comes before the first weight, as what prepares inputs does",
        "scale": "it is one number",
        "mask": "it is a mask",
        "corners": "it holds short binary numbers, as sizes, corners and masks do",
    }


def test_a_constant_that_a_graph_returns_stays() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y, float[2, 2] w)
        <float[2, 2] w = {0.1, 0.2, 0.3, 0.4}> { y = MatMul (x, w) }"""
    found = constraints(parse(text))
    assert found.weights == ()
    assert found.others == {"w": "a graph returns it"}


LAYERS = conv_and_dense()
CODED = {
    "cluster-weights:bits=3": {TableWeight},
    "prune-weights:ratio=0.8,cluster-weights:bits=3": {TableWeight},
    "ternarize-weights": {TableWeight},
    "binarize-weights": {TableWeight},
    "quantize-power-of-two:bits=4": {LevelCodes},
    "quantize-fixed-point:il=3:fl=3": {LevelCodes},
    "quantize-fixed-point:il=3:fl=9": {GridWeight},
    "quantize-weights:bits=8": {GridWeight},
    "quantize-weights:bits=4": {GridWeight},
    "quantize-weights:bits=4:block=16": {GridWeight},
    "quantize-int8:placement=all:activation-ranges=static": {GridWeight, BiasWeight},
}


@pytest.mark.parametrize("passes", CODED)
def test_weights_that_passes_store_are_read_and_computed_alike(passes: str) -> None:
    x = samples(32, 2, 6, 6)
    model, _ = compress(
        LAYERS, passes=passes, calibration={"x": x}, force=True, floors=None, measure=False
    )
    found = read_constraints(model.graph)
    assert CODED[passes] <= {type(item) for item in found.coded()}
    assert not set(found.others.values()) - {
        "its values stay, and codes move among them",
        "its steps are powers of two, which stay so",
    }
    twin = dense_twin(model, found)
    assert not any(n.domain == "onnxslim" for n in twin.model.graph.nodes)
    made, expected = (
        open_session(each, optimise=False).run({"x": x})["y"] for each in (twin.model, model)
    )
    assert np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_codes_come_back_to_the_byte(bits: int) -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(64, 32)}, ["N", 64])
    model, _ = compress(
        source,
        passes=f"quantize-weights:bits={bits}:block=32",
        force=True,
        floors=None,
        measure=False,
    )
    (found,) = read_constraints(model.graph).coded()
    assert isinstance(found, GridWeight)
    made = found.packed(found.steps.codes)
    np.testing.assert_array_equal(made, found.holder.values, strict=True)


def test_steps_of_activations_are_one_for_both_nodes_of_a_pair() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y)
        <float[2, 2] w = {0.1, 0.2, 0.3, 0.4}, float s = {0.03}, float t = {0.03}, int8 z = {0}>
        {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, t, z)
            y = MatMul (d, w)
        }"""
    scales = [s for s in constraints(parse(text)).weights if isinstance(s, ScaleWeight)]
    assert [(item.name, [name for name, _ in item.twins]) for item in scales] == [("s", ["t"])]


def test_a_grid_of_powers_of_two_keeps_its_steps() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y)
        <int8[2, 2] w = {1, 2, 3, 4}, float s = {0.25}>
        { d = DequantizeLinear (w, s) y = MatMul (x, d) }"""
    found = constraints(parse(text))
    assert [type(item) for item in found.weights] == [GridWeight]
    assert found.others == {"s": "its steps are powers of two, which stay so"}


def test_codes_that_another_node_reads_stay() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y, float[2, 2] e)
        <int8[2, 2] w = {1, 2, 3, 4}, float s = {0.3}>
        { d = DequantizeLinear (w, s) y = MatMul (x, d) e = Cast <to = 1> (w) }"""
    found = constraints(parse(text))
    assert "GridWeight" not in {type(item).__name__ for item in found.weights}
    assert found.others["d"] == "other nodes read its codes"


def test_a_bias_with_one_scale_beside_a_weight_with_a_scale_for_its_one_channel_is_read() -> None:
    model = parse(
        """<opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 1] y)
            <float s = {0.5}, uint8 z = {0}, int8[2, 1] w = {3, -4}, float[1] t = {0.25},
             int8[1] o = {0}, int32[1] b = {8}, float u = {0.125}, int32 v = {0}> {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            e = DequantizeLinear <axis = 1> (w, t, o)
            f = DequantizeLinear (b, u, v)
            y = Gemm (d, e, f)
        }"""
    )
    figures = layer_figures(Model.load(model))
    assert figures["y"].bytes > 0
