"""Inputs of a model that hold keys or values of earlier positions: (batch, heads, length, width).

Which of the axes are heads and columns follows from their use: both have known sizes, and new
positions are joined along another axis.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

CACHE_RANK: Final = 4
_USERS: Final = frozenset({"Attention", "Concat", "MatMul", "Shape", "Transpose"})


def cache_axes(tensor: gs.Tensor) -> tuple[int, int] | None:
    """The axes of heads and of columns of an input of a graph; None where it is no cache."""
    shape = tensor.shape
    if shape is None or len(shape) != CACHE_RANK or tensor.dtype is None:
        return None
    users = [node for node in tensor.outputs if node.op != "Shape"]
    if np.dtype(tensor.dtype).kind != "f" or not users:
        return None
    if any(node.op not in _USERS or not node.is_onnx for node in users):
        return None
    joined = {int(node.attrs["axis"]) % CACHE_RANK for node in users if node.op == "Concat"}
    axes = tuple(
        axis
        for axis, size in enumerate(shape)
        if axis and axis not in joined and isinstance(size, int) and size > 1
    )
    return (axes[0], axes[1]) if len(axes) == 2 else None
