from __future__ import annotations

import onnx
import pytest

from onnxslim.analysis.data_sizes import outputs_sized_by_data
from onnxslim.io.model import Model


def sized_by_data(inputs: str, body: str, constants: str = "int64 zero = {0}") -> bool:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float y) <{constants}>'
    proto = onnx.parser.parse_model(f"{text} {{ {body} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return outputs_sized_by_data(Model.load(proto)) == {"y"}


@pytest.mark.parametrize(
    "body",
    [
        "y = NonZero (x)",
        "n = NonZero (x) y = Transpose (n)",
        "s = ReduceSum <keepdims = 0> (x) n = Cast <to = 7> (s) y = Range (zero, n, one)",
    ],
)
def test_counts_and_computed_numbers_depend_on_data(body: str) -> None:
    assert sized_by_data("float[N, T] x", body, "int64 zero = {0}, int64 one = {1}")


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu (x)",
        "s = Shape (x) y = ConstantOfShape (s)",
        "s = Shape (x) h = Div (s, two) y = Expand (one, h)",
        "y = Expand (x, n)",
        "v, y = TopK (x, k)",
    ],
)
def test_sizes_of_inputs_and_integers_do_not(body: str) -> None:
    constants = "int64 one = {1}, int64 two = {2}, int64[1] k = {2}"
    assert not sized_by_data("float[N, T] x, int64[2] n", body, constants)
