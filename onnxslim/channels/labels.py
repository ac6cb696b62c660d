"""Labels of the channels of a tensor, as arrays that numpy moves just as values move.

A *label* is an integer id of a channel, `NONE` where there is no channel to follow. A *label array*
has the rank of its tensor; along each axis it is as long as the tensor, or 1 where the label does
not depend on that axis: with `array` of shape (1, C, 1, 1), channel c has the label
`array[0, c, 0, 0]`. An array *labels* the axes along which it is longer than 1. A tensor has any
number of label arrays; no two of them label the same axis.

Where a Reshape joins an axis of channels with an axis of unknown size in front of it (batch and
heads), labels repeat along the joined axis: the array is as long as this *period* there.

Owns: how labels move. Not here: what operators do with them (see `rules_*`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.graph.sizes import Shape, Size, applied, divide, product

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


def spread_along(array: LabelArray, axis: int) -> LabelArray:
    """The labels of each position along `axis`, (positions, labels)."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def in_step(a: LabelArray, b: LabelArray) -> tuple[LabelArray, LabelArray] | None:
    """Both arrays, the one with a shorter period over and over; None where none is a multiple."""
    rank = max(a.ndim, b.ndim)
    a, b = with_rank(a, rank), with_rank(b, rank)
    pairs = [sorted(pair) for pair in zip(a.shape, b.shape, strict=True)]
    if any(long % short for short, long in pairs):
        return None

    def tiled(array: LabelArray) -> LabelArray:
        times = [
            long // own if short > 1 else 1
            for (short, long), own in zip(pairs, array.shape, strict=True)
        ]
        return np.tile(array, times)

    return tiled(a), tiled(b)


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

    Sizes may be symbols: of the axes that a labelled one is joined with, only those further in must
    have known sizes. Where it is joined with a symbol in front, its labels become a period.
    """
    found = []
    for array in labels:
        part = _reshaped(*_unfolded(array, shape), target)
        if part is None:
            return None
        simple = simplified(part)
        if simple is not None:
            found.append(simple)
    return tuple(found)


_Blocks = Sequence[tuple[slice, slice]]


def matching_blocks(shape: Shape, target: Shape) -> _Blocks | None:
    """Runs of axes of `shape` and of `target` that hold the same elements, as short as possible.

    Runs are matched by their sizes from the front, and from the back where symbols in front are not
    known to be equal. What is left in the middle is a run too: a Reshape keeps all elements.
    """
    front = _leading_blocks(shape, target)
    i, j = sum(before for before, _ in front), sum(after for _, after in front)
    back = _leading_blocks(shape[i:][::-1], target[j:][::-1])[::-1]
    middle = (
        len(shape) - i - sum(before for before, _ in back),
        len(target) - j - sum(after for _, after in back),
    )
    if any(middle):
        left, right = product(shape[i : i + middle[0]]), product(target[j : j + middle[1]])
        if isinstance(left, int) and isinstance(right, int):
            return None  # two numbers that differ
        front.append(middle)
    blocks: list[tuple[slice, slice]] = []
    i = j = 0
    for before, after in (*front, *back):
        blocks.append((slice(i, i + before), slice(j, j + after)))
        i, j = i + before, j + after
    return blocks


def _leading_blocks(shape: Shape, target: Shape) -> list[tuple[int, int]]:
    """The numbers of axes of each run, as far as they can be told from the front."""
    blocks: list[tuple[int, int]] = []
    i = j = 0
    while i < len(shape) or j < len(target):
        found = _next_block(shape[i:], target[j:])
        if found is None:
            break
        blocks.append(found)
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


def _unfolded(array: LabelArray, shape: Shape) -> tuple[LabelArray, Shape]:
    """The array with an axis of its own for each period, and the sizes of these axes."""
    sizes: list[Size] = []
    lengths: list[int] = []
    for length, size in zip(array.shape, shape, strict=True):
        if length > 1 and length != size:
            rounds = divide(size, length)
            sizes.append(applied("rounds", size, length) if rounds is None else rounds)
            lengths.append(1)
            size = length
        sizes.append(size)
        lengths.append(length)
    return array.reshape(lengths), tuple(sizes)


def _reshaped(array: LabelArray, shape: Shape, target: Shape) -> LabelArray | None:
    blocks = matching_blocks(shape, target)
    if blocks is None:
        return None
    full: list[int] = []
    wanted: list[int] = []
    for before, after in blocks:
        lengths, sizes, results = array.shape[before], shape[before], target[after]
        # a block without labels stays of size 1, whatever its sizes
        if all(length == 1 for length in lengths):
            full += [1] * len(sizes)
            wanted += [1] * len(results)
            continue
        if (known := _all_ints(sizes)) is not None and (told := _all_ints(results)) is not None:
            full += known
            wanted += told
            continue
        # labels depend on the place among the elements of the axes from the first labelled one on
        first = next(axis for axis, length in enumerate(lengths) if length > 1)
        inner = _all_ints(sizes[first:])
        moved = None if inner is None else _period(math.prod(inner), results)
        if inner is None or moved is None:
            return None
        full += [1] * first + inner
        wanted += moved
    found = np.broadcast_to(array, full).reshape(wanted)
    times = [
        size // length if isinstance(size, int) and 1 < length < size else 1
        for length, size in zip(wanted, target, strict=True)
    ]
    return np.tile(found, times) if any(count > 1 for count in times) else found


def _all_ints(sizes: Shape) -> list[int] | None:
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else None


def _period(count: int, sizes: Shape) -> list[int] | None:
    """How `count` elements, over and over in row-major order, lie in axes of these sizes.

    Returns:
        The period along each axis, 1 where the place does not matter; None if there is none.
    """
    found: list[int] = []
    for axis in reversed(range(len(sizes))):
        size = sizes[axis]
        if count == 1:
            found.append(1)
        elif isinstance(size, int) and count % size == 0:
            found.append(size)
            count //= size
        elif divide(size, count) is not None or (axis == 0 and not isinstance(size, int)):
            # the first axis holds the rest of the elements, which are that many, several times
            found.append(count)
            count = 1
        else:
            return None
    return found[::-1] if count == 1 else None


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
