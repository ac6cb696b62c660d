"""Model-local functions of onnxslim: their domain, their names, and tensors that they compute."""

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
    """Whether a Lookup, FixedPoint or Dequantize node computes `tensor`."""
    if len(tensor.inputs) != 1:
        return False
    node = tensor.inputs[0]
    names = (LOOKUP, FIXED_POINT, DEQUANTIZE)
    return bool(node.domain == DOMAIN) and str(node.op).startswith(names)
