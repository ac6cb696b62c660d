"""Which QuantizeLinear gives back the integers that a DequantizeLinear started from.

For a code q, a scale s and a zero point z, x = s·(q - z) is rounded once, and x/s is off q - z by
far less than a half, as long as s is neither so small nor so large that x loses digits. So
round(x/s) + z is q again.

Owns: that comparison. Not here: what stands between the two (see the passes that ask).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array

_GRID: Final = (("axis", 1), ("block_size", 0))
_SCALES: Final = (1e-30, 1e30)  # with these, products neither overflow nor lose digits


def are_on_same_grid(dequantize: Node, quantize: Node) -> bool:
    """Whether codes stay what they are through `dequantize` and `quantize`.

    Args:
        dequantize: a DequantizeLinear.
        quantize: a QuantizeLinear.
    """
    source, scale = dequantize.inputs[0], const_array(quantize.inputs[1])
    if source.dtype is None or source.dtype != quantize.outputs[0].dtype:
        return False
    if scale is None or scale.dtype != np.float32:
        return False
    if not np.all((scale > _SCALES[0]) & (scale < _SCALES[1])):
        return False
    operands = [list(item.inputs)[1:] for item in (dequantize, quantize)]
    alike = len(operands[0]) == len(operands[1]) and all(map(_same_constant, *operands))
    settings = [[item.attrs.get(n, d) for n, d in _GRID] for item in (dequantize, quantize)]
    return alike and settings[0] == settings[1]


def _same_constant(a: gs.Tensor, b: gs.Tensor) -> bool:
    if a is b:
        return True
    x, y = const_array(a), const_array(b)
    return x is not None and y is not None and x.dtype == y.dtype and bool(np.array_equal(x, y))
