"""Tensors have one value exactly when they are certainly made in the same way."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from onnxslim.io.model import Model
from onnxslim.runtime.probes.value_numbering import ValueNumber, ValueNumbering
from support import parse

TEXT = """
<opset_import: ["" : 17]>
net (float[N, 4] x, float[N, 4] z) => (float[N, 4] y)
<float[4, 4] a = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float[4] b = {1,2,3,4}>
{
    h = MatMul (x, a)
    s = Softmax <axis = 1> (h)
    t = Softmax <axis = 0> (h)
    u = Softmax <axis = 1> (h)
    c = Neg (b)
    d = Add (s, c)
    y = Add (d, z)
}
"""


def values(numbering: ValueNumbering, model: Model) -> dict[str, ValueNumber]:
    return {tensor.name: value for tensor, value in numbering.value_numbers(model.graph).items()}


def one(text: str) -> Model:
    return Model.load(parse(text))


def test_a_copy_of_a_model_has_the_same_values() -> None:
    numbering, model = ValueNumbering(), one(TEXT)
    first, second = values(numbering, model), values(numbering, model.clone())
    assert first == second
    assert numbering.signature(model.graph) == numbering.signature(model.clone().graph)


def test_operators_attributes_and_inputs_make_a_value() -> None:
    found = values(ValueNumbering(), one(TEXT))
    assert found["s"] is found["u"]
    assert found["s"] is not found["t"]
    assert len({found[name] for name in "xzhstcdy"}) == 8


def test_what_depends_on_no_input_does_not_vary() -> None:
    found = values(ValueNumbering(), one(TEXT))
    assert [name for name in "xzhstucdy" if not found[name].varies] == ["c"]


def test_another_weight_gives_another_value_to_all_behind_it() -> None:
    numbering, model = ValueNumbering(), one(TEXT)
    before = values(numbering, model)
    other = model.clone()
    (add,) = (node for node in other.graph.nodes if node.outputs[0].name == "c")
    add.inputs[0].values = np.array([1, 2, 3, 4], np.float32)  # equal, but another array
    after = values(numbering, other)
    assert {name for name in before if before[name] is not after[name]} == {"c", "d", "y"}
    assert numbering.signature(model.graph) != numbering.signature(other.graph)


def test_an_array_that_is_gone_is_not_mistaken_for_another_at_its_place() -> None:
    numbering, model = ValueNumbering(), one(TEXT)
    constant = next(node for node in model.graph.nodes if node.op == "Neg").inputs[0]
    found = []
    gc.freeze()  # so that each collection looks at what this test made, not at the whole process
    try:
        for _ in range(20):
            constant.values = np.ones(4, np.float32)
            gc.collect()
            found.append(values(numbering, model)["c"])
    finally:
        gc.unfreeze()
    assert len(set(found)) == 20


@pytest.mark.parametrize(
    "body",
    [
        "y = Bernoulli (x)",
        "y = RandomUniformLike (x)",
        "r, m = Dropout (x) \n y = Identity (r)",
    ],
)
def test_random_numbers_are_never_the_same(body: str) -> None:
    text = f'<opset_import: ["" : 17]> net (float[N] x) => (float[N] y) {{ {body} }}'
    numbering, model = ValueNumbering(), one(text)
    first, second = (values(numbering, item)["y"] for item in (model, model.clone()))
    assert first is not second


def test_bodies_count_with_what_they_capture() -> None:
    text = """
    <opset_import: ["" : 17]>
    net (float[N] x, bool c) => (float[N] y) <float[1] w = {2}>
    {
        h = Mul (x, w)
        y = If (c) <
            then_branch = yes () => (float[N] t) { t = Relu (h) },
            else_branch = no () => (float[N] t) { t = Neg (h) }
        >
    }
    """
    numbering, model = ValueNumbering(), one(text)
    first = values(numbering, model)
    assert values(numbering, model.clone())["y"] is first["y"]
    other = model.clone()
    other.graph.nodes[0].inputs[1].values = np.array([3], np.float32)
    assert values(numbering, other)["y"] is not first["y"]
    changed = model.clone()
    changed.graph.nodes[1].attrs["else_branch"].nodes[0].op = "Abs"
    assert values(numbering, changed)["y"] is not first["y"]


def test_operators_that_nothing_defines_are_never_the_same() -> None:
    text = """
    <opset_import: ["" : 17, "com.microsoft" : 1]>
    net (float[N] x) => (float[N] y) { y = com.microsoft.Gelu (x) }
    """
    numbering, model = ValueNumbering(), Model.load(parse(text))
    first, second = (values(numbering, item)["y"] for item in (model, model.clone()))
    assert first is not second


def test_local_functions_are_the_same_where_they_are_one_definition() -> None:
    text = """
    <opset_import: ["" : 17, "local" : 1]>
    net (float[N] x) => (float[N] y) { y = local.Twice (x) }
    <domain: "local", opset_import: ["" : 17]>
    Twice (a) => (b) { b = Add (a, a) }
    """
    numbering, model = ValueNumbering(), Model.load(parse(text))
    assert values(numbering, model)["y"] is values(numbering, model.clone())["y"]
    assert values(numbering, one(text))["y"] is not values(numbering, model)["y"]
