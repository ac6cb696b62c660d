"""Constant targets for a Reshape or Expand whose result is known up to symbols.

The spec lets a static target stand for sizes that are known only at run time: Reshape copies a
dimension for 0 and computes one for -1; Expand keeps a dimension for 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.graph.sizes import Shape, Size


def reshape_target(shape: Shape | None, wanted: Sequence[Size | None]) -> tuple[int, ...] | None:
    """A constant for Reshape (with allowzero=0) that gives `wanted`; None where there is none.

    Args:
        shape: of the input, None when its rank is unknown.
        wanted: sizes of the output; at most one may be neither an integer nor the input's size
            along the same axis.
    """
    target: list[int] = []
    for axis, size in enumerate(wanted):
        if isinstance(size, int):
            if size <= 0:
                return None  # a literal 0 would copy
            target.append(size)
        elif size is not None and shape is not None and axis < len(shape) and shape[axis] == size:
            target.append(0)
        else:
            target.append(-1)
    return tuple(target) if target.count(-1) <= 1 else None


def expand_target(shape: Shape, wanted: Sequence[Size | None]) -> tuple[int, ...] | None:
    """A constant for Expand that does what `wanted` does to `shape`; None where there is none.

    () means that nothing is expanded.
    """
    aligned = (*(1,) * (len(wanted) - len(shape)), *shape)[-len(wanted) :] if wanted else ()
    target: list[int] = []
    for size, given in zip(wanted, aligned, strict=True):
        if size is not None and size == given:
            target.append(1)
        elif isinstance(given, int) and given != 1:
            target.append(1)  # only a 1 can be expanded: any other size stays, or the model fails
        elif isinstance(size, int):
            target.append(size)
        else:
            return None
    if len(wanted) > len(shape):
        return tuple(target)  # the new leading axes are part of the result
    while target and target[0] == 1:
        del target[0]
    return tuple(target)
