"""Questions about the shape of one tensor: its rank, a known size, whether all sizes are known.

They answer from what stands on the tensor; `io/shapes.py` infers it there.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs


def static_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape if every dimension is known, else None."""
    shape = tensor.shape
    if shape is None or not all(isinstance(size, int) and size >= 0 for size in shape):
        return None
    return tuple(int(size) for size in shape)


def rank(tensor: gs.Tensor) -> int | None:
    """Number of dimensions, None when unknown."""
    return None if tensor.shape is None else len(tensor.shape)


def known_dim(tensor: gs.Tensor, axis: int) -> int | None:
    """The size along `axis` if it is known, else None."""
    shape = tensor.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return int(size) if isinstance(size, int) and size >= 0 else None


def same_shape(a: Sequence[int | str | None] | None, b: Sequence[int | str | None] | None) -> bool:
    """Whether two shapes are certainly equal: same sizes and same symbols, nothing unknown."""
    if a is None or b is None or len(a) != len(b):
        return False
    return all(x is not None and x == y for x, y in zip(a, b, strict=True))
