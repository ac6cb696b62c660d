"""Names of channels on a tensor, and how they move: arrays of ids, handled by numpy.

A *array* has the rank of its tensor; along each axis it is as long as the tensor, or 1 where the
name does not depend on that axis. `array[0, c, 0, 0]` is the name of channel c, `NONE` where there
is none. An axis along which a array is longer than 1 is *labelled_axes*. A tensor has any number of
labels; no two of them label the same axis.

What may change here: how labels move. What an operator does with them is in the `rules_*` modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.graph.sizes import Shape, product

LabelArray = npt.NDArray[np.int64]
ChannelLabels = tuple[LabelArray, ...]

NONE: Final = -1


def labelled_axes(array: LabelArray) -> frozenset[int]:
    """The axes along which names differ."""
    return frozenset(axis for axis, size in enumerate(array.shape) if size > 1)


def along_axis(ids: npt.NDArray[np.int64], axis: int, rank: int) -> LabelArray:
    """A array that labels one axis."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return ids.reshape(shape)


def ids_along(labels: ChannelLabels, axis: int) -> npt.NDArray[np.int64] | None:
    """The names along `axis`, where a array labels that axis alone."""
    for array in labels:
        if labelled_axes(array) == {axis}:
            return array.reshape(-1)
    return None


def with_rank(array: LabelArray, rank: int) -> LabelArray:
    """The array with leading axes, as broadcasting adds them."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def simplified(array: LabelArray) -> LabelArray | None:
    """Without labels on axes along which nothing changes; None where no label is left."""
    for axis in labelled_axes(array):
        first = array.take([0], axis)
        if (array == first).all():
            array = first
    return array if array.size > 1 else None


def transposed(labels: ChannelLabels, perm: Sequence[int]) -> ChannelLabels:
    """As Transpose moves them."""
    return tuple(array.transpose(perm) for array in labels)


def reshaped(labels: ChannelLabels, shape: Shape, target: Shape) -> ChannelLabels | None:
    """As Reshape moves them; None where it cannot be said which axes become which.

    Sizes of labelled_axes axes, and of those that are joined with them or split from them, must be
    numbers; all others may be symbols.
    """
    blocks = matching_blocks(shape, target)
    if blocks is None:
        return None
    found = []
    for array in labels:
        part = _reshaped(array, shape, target, blocks)
        if part is None:
            return None
        simple = simplified(part)
        if simple is not None:
            found.append(simple)
    return tuple(found)


_Blocks = Sequence[tuple[slice, slice]]


def matching_blocks(shape: Shape, target: Shape) -> _Blocks | None:
    """Runs of axes of `shape` and of `target` that hold the same elements, as short as possible."""
    blocks: list[tuple[slice, slice]] = []
    i = j = 0
    while i < len(shape) or j < len(target):
        found = _next_block(shape[i:], target[j:])
        if found is None:
            return None
        blocks.append((slice(i, i + found[0]), slice(j, j + found[1])))
        i, j = i + found[0], j + found[1]
    return blocks


def _next_block(shape: Shape, target: Shape) -> tuple[int, int] | None:
    for length in range(1, len(shape) + len(target) + 1):
        for a in range(min(length, len(shape)) + 1):
            b = length - a
            if b <= len(target) and product(shape[:a]) == product(target[:b]):
                return a, b
    return None


def _reshaped(array: LabelArray, shape: Shape, target: Shape, blocks: _Blocks) -> LabelArray | None:
    full: list[int] = []
    wanted: list[int] = []
    for before, after in blocks:
        sizes, results = shape[before], target[after]
        if all(size == 1 for size in array.shape[before]):
            full += [1] * len(sizes)
            wanted += [1] * len(results)
            continue
        for size in (*sizes, *results):
            if not isinstance(size, int):
                return None
        full += [int(str(size)) for size in sizes]
        wanted += [int(str(size)) for size in results]
    return np.broadcast_to(array, full).reshape(wanted)


def by_shared_axes(labels: Iterable[LabelArray]) -> Iterator[list[LabelArray]]:
    """The labels, those that label a common axis together."""
    groups: list[tuple[frozenset[int], list[LabelArray]]] = []
    for array in labels:
        axes, members = labelled_axes(array), [array]
        rest = []
        for other_axes, others in groups:
            if axes & other_axes:
                axes, members = axes | other_axes, others + members
            else:
                rest.append((other_axes, others))
        groups = [*rest, (axes, members)]
    for _, members in groups:
        yield members
