"""Names of channels on a tensor, and how they move: arrays of ids, handled by numpy.

A *facet* has the rank of its tensor; along each axis it is as long as the tensor, or 1 where the
name does not depend on that axis. `facet[0, c, 0, 0]` is the name of channel c, `NONE` where there
is none. An axis along which a facet is longer than 1 is *labelled*. A tensor has any number of
facets; no two of them label the same axis.

What may change here: how facets move. What an operator does with them is in the `rules_*` modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.graph.sizes import Shape, product

Facet = npt.NDArray[np.int64]
Facets = tuple[Facet, ...]

NONE: Final = -1


def labelled(facet: Facet) -> frozenset[int]:
    """The axes along which names differ."""
    return frozenset(axis for axis, size in enumerate(facet.shape) if size > 1)


def along(ids: npt.NDArray[np.int64], axis: int, rank: int) -> Facet:
    """A facet that labels one axis."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return ids.reshape(shape)


def ids_along(facets: Facets, axis: int) -> npt.NDArray[np.int64] | None:
    """The names along `axis`, where a facet labels that axis alone."""
    for facet in facets:
        if labelled(facet) == {axis}:
            return facet.reshape(-1)
    return None


def aligned(facet: Facet, rank: int) -> Facet:
    """The facet with leading axes, as broadcasting adds them."""
    return facet.reshape((1,) * (rank - facet.ndim) + facet.shape)


def simplified(facet: Facet) -> Facet | None:
    """Without labels on axes along which nothing changes; None where no label is left."""
    for axis in labelled(facet):
        first = facet.take([0], axis)
        if (facet == first).all():
            facet = first
    return facet if facet.size > 1 else None


def moved(facets: Facets, perm: Sequence[int]) -> Facets:
    """As Transpose moves them."""
    return tuple(facet.transpose(perm) for facet in facets)


def reshaped(facets: Facets, shape: Shape, target: Shape) -> Facets | None:
    """As Reshape moves them; None where it cannot be said which axes become which.

    Sizes of labelled axes, and of those that are joined with them or split from them, must be
    numbers; all others may be symbols.
    """
    blocks = matching_blocks(shape, target)
    if blocks is None:
        return None
    found = []
    for facet in facets:
        part = _reshaped(facet, shape, target, blocks)
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


def _reshaped(facet: Facet, shape: Shape, target: Shape, blocks: _Blocks) -> Facet | None:
    full: list[int] = []
    wanted: list[int] = []
    for before, after in blocks:
        sizes, results = shape[before], target[after]
        if all(size == 1 for size in facet.shape[before]):
            full += [1] * len(sizes)
            wanted += [1] * len(results)
            continue
        for size in (*sizes, *results):
            if not isinstance(size, int):
                return None
        full += [int(str(size)) for size in sizes]
        wanted += [int(str(size)) for size in results]
    return np.broadcast_to(facet, full).reshape(wanted)


def overlapping(facets: Iterable[Facet]) -> Iterator[list[Facet]]:
    """The facets, those that label a common axis together."""
    groups: list[tuple[frozenset[int], list[Facet]]] = []
    for facet in facets:
        axes, members = labelled(facet), [facet]
        rest = []
        for other_axes, others in groups:
            if axes & other_axes:
                axes, members = axes | other_axes, others + members
            else:
                rest.append((other_axes, others))
        groups = [*rest, (axes, members)]
    for _, members in groups:
        yield members
