"""Weights that take few values, in an ordinary ONNX file: a small table and packed codes.

radix      codes below any number of levels as bytes, and back
weight     such a weight: codes and tables, and the dense values that onnxruntime computes
function   the model-local function that looks the values up when a session starts
fixed_point  16-bit integers and one scale, for values too many for a table
placing    how such a node takes the place of a constant
graph      its node in a graph: put there, found, read
sparse     weights that are mostly zero, as sparse initializers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

DOMAIN: Final = "onnxslim"
DOMAIN_VERSION: Final = 1
LOOKUP: Final = "Lookup"
FIXED_POINT: Final = "FixedPoint"
DEQUANTIZE: Final = "Dequantize"


def is_codebook(tensor: gs.Tensor) -> bool:
    """Whether `tensor` is a weight that a Lookup, FixedPoint or Dequantize node gives."""
    if len(tensor.inputs) != 1:
        return False
    node = tensor.inputs[0]
    made_by = (LOOKUP, FIXED_POINT, DEQUANTIZE)
    return bool(node.domain == DOMAIN) and str(node.op).startswith(made_by)
