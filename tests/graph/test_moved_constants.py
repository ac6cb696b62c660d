from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import FORCE, REPRODUCERS, net, node, normal, output_error, runs, samples
from onnx import TensorProto, helper, numpy_helper

from onnxslim.graph.ir import Constant, walk_graphs
from onnxslim.graph.moved_constants import has_moved_constants, settle
from onnxslim.io.model import Model
from onnxslim.pipeline.execution import run_pass
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.registry import get
from onnxslim.records import Fidelity
from support import CONTEXT, assert_equivalent, parse


def settled(source: onnx.ModelProto) -> Model:
    model = Model.load(source)
    settle(model.graph)
    return model


def ops(model: Model) -> list[str]:
    return [item.op for graph in walk_graphs(model.graph) for item in graph.nodes]


def constants(model: Model) -> dict[str, tuple[int, ...]]:
    nodes = [item for graph in walk_graphs(model.graph) for item in graph.nodes]
    found = (tensor for item in nodes for tensor in item.inputs)
    return {tensor.name: tuple(tensor.shape) for tensor in found if isinstance(tensor, Constant)}


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    """A weight behind up to five operators that move it, at an old or a new opset."""
    opset = draw(st.sampled_from((7, 11, 13, 21)))
    shape = tuple(draw(st.lists(st.sampled_from((1, 2, 3)), min_size=1, max_size=4)))
    nodes, weights, last = [], {"w": normal(*shape)}, "w"

    def ints(name: str, values: Sequence[int]) -> list[str]:
        weights[name] = np.array(values, np.int64)
        return [name]

    for number in range(draw(st.integers(1, 5))):
        result, ndim = f"t{number}", len(shape)
        op = draw(st.sampled_from(("Identity", "Transpose", "Reshape", "Flatten", "Unsqueeze")))
        op = "Squeeze" if op == "Unsqueeze" and 1 in shape and draw(st.booleans()) else op
        attrs: dict[str, object] = {}
        more: list[str] = []
        if op == "Transpose":
            order = draw(st.permutations(range(ndim)))
            attrs["perm"], shape = list(order), tuple(shape[axis] for axis in order)
        elif op == "Reshape":
            flat = int(np.prod(shape))
            target = draw(st.sampled_from(([flat], [1, flat], [0, -1], [-1, shape[-1]])))
            more = ints(f"{result}_shape", target)
            first = shape[0] if target[0] == 0 else target[0]
            shape = tuple(np.empty(shape).reshape([first, *target[1:]]).shape)
        elif op == "Flatten":
            axis = draw(st.integers(0, ndim))
            attrs["axis"] = axis
            shape = (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
        elif op != "Identity":
            is_new = op == "Unsqueeze"
            axis = draw(st.integers(0, ndim)) if is_new else shape.index(1)
            if opset < 13:
                attrs["axes"] = [axis]
            else:
                more = ints(f"{result}_axes", [axis])
            shape = (*shape[:axis], *((1,) if is_new else ()), *shape[axis + (not is_new) :])
        nodes.append(node(op, [last, *more], result, **attrs))
        last = result
    nodes.append(node("Mul", ["x", last], "y"))
    return net(nodes, weights, [1], opset=opset)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(chains())
def test_a_moved_constant_is_the_constant_that_the_operators_make(source: onnx.ModelProto) -> None:
    model = settled(source)
    assert ops(model) == ["Mul"]
    assert_equivalent(source, model.to_proto(), Fidelity.EXACT)
    assert not has_moved_constants(model.graph)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("t = Transpose (w)  a = MatMul (x, t)  y = MatMul (a, w)", "Transpose"),
        ("t = Transpose (w)  s = Reshape (w, n)  a = MatMul (x, t)  y = Mul (a, s)", "Transpose"),
        ("t = Transpose (w)  i = Identity (w)  a = MatMul (x, t)  y = MatMul (a, i)", "Transpose"),
        ("e = Exp (w)  y = MatMul (x, e)", "Exp"),
        ("r = Reshape (w, n)  t = Tanh (r)  y = MatMul (x, t)", "Tanh"),
    ],
)
def test_a_constant_that_is_read_in_several_forms_is_not_written_twice(
    body: str, left: str
) -> None:
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {{1, 2, 3, 4}}, int64[2] n = {{2, 2}}>
        {{ {body} }}"""
    )
    model = settled(source)
    assert left in ops(model)
    assert "Identity" not in ops(model)
    assert len(constants(model)) <= 2
    assert_equivalent(source, model.to_proto(), Fidelity.EXACT)


def test_a_constant_node_goes_with_the_last_node_that_moved_it() -> None:
    source = parse(
        """<opset_import: ["" : 17]> g (float[1, 3] x) => (float[1, 2] y) {
            w = Constant <value = float[2, 3] {1, 2, 3, 4, 5, 6}> ()
            t = Transpose <perm = [1, 0]> (w)
            y = MatMul (x, t)
        }"""
    )
    assert ops(settled(source)) == ["MatMul"]


def test_a_form_that_the_graph_returns_stays() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 2] y, float[3, 2] t) <float[2, 3] w = {1, 2, 3, 4, 5, 6}>
        { t = Transpose (w)  y = MatMul (x, t) }"""
    )
    model = settled(source)
    assert ops(model) == ["Transpose", "MatMul"]
    assert_equivalent(source, model.to_proto(), Fidelity.EXACT)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_bodies_read_a_constant_of_the_main_graph(ir_version: int) -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (bool c, float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        {
            y = If (c) <
                then_branch = t () => (float[2, 2] r) { m = Transpose (w) r = MatMul (x, m) },
                else_branch = e () => (float[2, 2] r) { m = Transpose (w) r = Mul (x, m) }
            >
        }"""
    )
    source.ir_version = ir_version
    if ir_version < 4:
        source.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2]))
    model = settled(source)
    assert sorted(ops(model)) == ["If", "MatMul", "Mul"]
    assert len(constants(model)) == 1
    assert_equivalent(source, model.to_proto(), Fidelity.EXACT)


# ------------------------------------------------------------------- lossy passes


def half_stored(dtype: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """A product whose weight is stored in two bytes."""
    weight = normal(32, 32)
    source = net([node("Cast", ["w"], "v", to=1), node("MatMul", ["x", "v"], "y")], {}, ["N", 32])
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)
    source.graph.initializer.append(numpy_helper.from_array(weight.astype(numpy_dtype), "w"))
    return source


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_what_a_pass_leaves_of_a_short_weight_is_stored_short_again(dtype: int) -> None:
    source = half_stored(dtype)
    model, (report,) = PassManager.parse("prune-weights:ratio=0.25").run(
        Model.load(source), CONTEXT, policy=FORCE, reproducers=REPRODUCERS
    )
    assert ops(model) == ["Cast", "MatMul"]
    (tensor,) = model.to_proto().graph.initializer
    assert tensor.data_type == dtype
    assert np.mean(numpy_helper.to_array(tensor) == 0) >= 0.25
    assert "as they were before" in report.changes[-1].what
    assert model.file_bytes() <= len(source.SerializeToString()) + 16


def test_a_pass_that_does_nothing_leaves_constants_where_they_are() -> None:
    source = half_stored()
    model = Model.load(source)
    before = model.to_bytes()
    result = run_pass(get("factorize-dense")(), model, CONTEXT)
    assert result.changes == ()
    assert model.to_bytes() == before


@pytest.mark.parametrize("name", ["prune-weights:ratio=0.5", "quantize-int8:placement=all"])
def test_passes_that_measure_see_through_to_the_same_weights(name: str) -> None:
    weights = {"w": normal(16, 16, scale=0.3), "v": normal(16, 16, seed=2, scale=0.3)}
    products = [("w", "a"), ("v", "b")]

    def made(moved: bool) -> onnx.ModelProto:
        nodes, last = [], "x"
        for weight, result in products:
            read = f"{weight}_t" if moved else weight
            if moved:
                nodes.append(node("Transpose", [weight], read, perm=[1, 0]))
            nodes += [node("MatMul", [last, read], result), node("Relu", [result], f"{result}_r")]
            last = f"{result}_r"
        held = {key: np.ascontiguousarray(w.T) if moved else w for key, w in weights.items()}
        return net([*nodes, node("Neg", [last], "y")], held, ["N", 16])

    x = samples(60, 16)
    results = []
    for moved in (False, True):
        context = Context(evaluate=CONTEXT.evaluate, calibration=runs(x))
        model, (report,) = PassManager.parse(name).run(
            Model.load(made(moved)), context, policy=FORCE, reproducers=REPRODUCERS
        )
        assert report.changes
        results.append(model)
    assert output_error(*results, x) < 1e-10
