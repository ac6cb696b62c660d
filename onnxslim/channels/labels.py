"""Labels of the channels of a tensor, as arrays that numpy moves just as values move.

A *label* is an integer id of a channel, `NONE` where there is no channel to follow. A *label array*
has the rank of its tensor; along each axis it is as long as the tensor, or 1 where the label does
not depend on that axis: with `array` of shape (1, C, 1, 1), channel c has the label
`array[0, c, 0, 0]`. An array *labels* the axes along which it is longer than 1. A tensor has any
number of label arrays; no two of them label the same axis.

Owns: how labels move. Not here: what operators do with them (see `rules_*`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.graph.sizes import Shape, product

LabelArray = npt.NDArray[np.int64]
ChannelLabels = tuple[LabelArray, ...]
"""All label arrays of one tensor."""

NONE: Final = -1


def labelled_axes(array: LabelArray) -> frozenset[int]:
    """The axes along which labels differ."""
    return frozenset(axis for axis, size in enumerate(array.shape) if size > 1)


def along_axis(ids: npt.NDArray[np.int64], axis: int, rank: int) -> LabelArray:
    """The array of rank `rank` that labels one axis with `ids`, (channels,)."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return ids.reshape(shape)


def ids_along(labels: ChannelLabels, axis: int) -> npt.NDArray[np.int64] | None:
    """The labels along `axis`, (channels,); None unless an array labels that axis alone."""
    for array in labels:
        if labelled_axes(array) == {axis}:
            return array.reshape(-1)
    return None


def with_rank(array: LabelArray, rank: int) -> LabelArray:
    """The array with leading axes, as broadcasting adds them."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def simplified(array: LabelArray) -> LabelArray | None:
    """The array without axes along which its labels are the same; None where no axis is left."""
    for axis in labelled_axes(array):
        first = array.take([0], axis)
        if (array == first).all():
            array = first
    return array if array.size > 1 else None


def transposed(labels: ChannelLabels, perm: Sequence[int]) -> ChannelLabels:
    """The labels after a Transpose."""
    return tuple(array.transpose(perm) for array in labels)


def reshaped(labels: ChannelLabels, shape: Shape, target: Shape) -> ChannelLabels | None:
    """The labels after a Reshape; None if it is not known which axes become which.

    Labelled axes, and axes that are joined with them or split from them, must have known sizes; all
    others may be symbols.
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
    """The least numbers of leading axes that have the same product of sizes."""
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
        # a block without labels stays of size 1, whatever its sizes
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


def by_shared_axes(arrays: Iterable[LabelArray]) -> Iterator[list[LabelArray]]:
    """The arrays in lists; arrays that label a common axis, directly or by others, are in one."""
    groups: list[tuple[frozenset[int], list[LabelArray]]] = []
    for array in arrays:
        axes, members = labelled_axes(array), [array]
        apart = []
        for other_axes, others in groups:
            if axes & other_axes:
                axes, members = axes | other_axes, others + members
            else:
                apart.append((other_axes, others))
        groups = [*apart, (axes, members)]
    for _, members in groups:
        yield members
