"""Models that ask for more than any machine has are refused before anything is run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxslim.errors import ModelError
from onnxslim.io.bounds import check_bounds
from onnxslim.io.model import Model
from onnxslim.limits import MOST_LIST_ENTRIES, MOST_TENSOR_BYTES

IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]


def model(
    *nodes: onnx.NodeProto,
    sizes: dict[str, list[int]] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    shape: tuple[int | str, ...] = (4,),
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array(v), k) for k, v in (sizes or {}).items()],
    )
    return Model.load(
        helper.make_model(graph, opset_imports=IMPORTS, functions=functions or [], ir_version=8)
    )


def function(name: str, *callees: str) -> onnx.FunctionProto:
    """A function that calls others one after the other; without any, a Relu."""
    names = ["x", *(f"t{i}" for i in range(len(callees) - 1)), "y"]
    nodes = [
        helper.make_node(callee, [names[i]], [names[i + 1]], domain="f")
        for i, callee in enumerate(callees)
    ]
    nodes = nodes or [helper.make_node("Relu", ["x"], ["y"])]
    return helper.make_function("f", name, ["x"], ["y"], nodes, IMPORTS)


HUGE = {
    "Expand": (helper.make_node("Expand", ["x", "s"], ["y"]), [1 << 40, 4]),
    "Tile": (helper.make_node("Tile", ["x", "s"], ["y"]), [1 << 38]),
    "ConstantOfShape": (helper.make_node("ConstantOfShape", ["s"], ["y"]), [1 << 20, 1 << 20]),
    "Reshape": (helper.make_node("Reshape", ["x", "s"], ["y"]), [1 << 20, 1 << 20]),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_tensor_of_terabytes_is_refused_by_name(name: str) -> None:
    node, sizes = HUGE[name]
    with pytest.raises(ModelError, match=rf"`y` \({name} `y`\) takes [\d,]+ bytes"):
        check_bounds(model(node, sizes={"s": sizes}, shape=("N",) if name == "Reshape" else (4,)))


def test_a_tensor_right_at_the_limit_is_taken() -> None:
    count = MOST_TENSOR_BYTES // 4
    node = helper.make_node("ConstantOfShape", ["s"], ["y"])
    check_bounds(model(node, sizes={"s": [count]}))
    with pytest.raises(ModelError, match="taken at most"):
        check_bounds(model(node, sizes={"s": [count + 1]}))


def test_an_input_of_terabytes_is_refused() -> None:
    with pytest.raises(ModelError, match=r"`x` \(an input\)"):
        check_bounds(model(helper.make_node("Relu", ["x"], ["y"]), shape=(1 << 40,)))


def test_functions_in_a_circle_are_refused() -> None:
    functions = [function("a", "b"), function("b", "a")]
    with pytest.raises(ModelError, match=r"in a circle, through `[ab]`"):
        check_bounds(model(helper.make_node("a", ["x"], ["y"], domain="f"), functions=functions))


def test_functions_that_stand_for_too_many_nodes_are_refused() -> None:
    functions = [function("f0"), *(function(f"f{i}", *[f"f{i - 1}"] * 2) for i in range(1, 40))]
    with pytest.raises(ModelError, match="549,755,813,888 nodes"):
        check_bounds(model(helper.make_node("f39", ["x"], ["y"], domain="f"), functions=functions))
    check_bounds(model(helper.make_node("f9", ["x"], ["y"], domain="f"), functions=functions))


@pytest.mark.parametrize("depth", [99, 101])
def test_functions_are_taken_as_deep_as_onnx_takes_them(depth: int) -> None:
    inner = [function(f"f{i}", f"f{i + 1}") for i in range(depth - 1)]
    chain = [*inner, function(f"f{depth - 1}")]
    nested = model(helper.make_node("f0", ["x"], ["y"], domain="f"), functions=chain)
    if depth > 100:
        with pytest.raises(ModelError, match="more than 100 deep"):
            check_bounds(nested)
    else:
        check_bounds(nested)


def test_a_list_that_is_too_long_is_refused_where_its_node_has_neither_name_nor_output() -> None:
    node = helper.make_node("Relu", ["x"], [], axes=range(MOST_LIST_ENTRIES + 1))
    with pytest.raises(ModelError, match=r"Attribute `axes` of node `` \(Relu\) has 1,048,577"):
        model(node)
