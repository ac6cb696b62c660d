"""Where the boxes of a graph stand: in layers, from top to bottom (Sugiyama, Tagawa, Toda 1981).

A box stands one layer below the lowest of its producers. An edge over several layers gets a point
in each of them, so that it goes around boxes. Within layers, boxes are ordered by the mean place of
their neighbours, down and up in turn, and then moved as near to it as their widths allow.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_SWEEPS: Final = 6
_GAP: Final = 16.0
_POINT: Final = 10.0  # width of a point of a long edge

Point = tuple[float, float]


@dataclass(frozen=True)
class GraphLayout:
    """Places of boxes, and ways of edges.

    Attributes:
        centers: of boxes: x, and the number of the layer.
        routes: for each edge, points from the producer to the reader, likewise.
        width: of the whole.
        layers: number of layers.
    """

    centers: Sequence[Point]
    routes: Sequence[Sequence[Point]]
    width: float
    layers: int


def layered(widths: Sequence[float], edges: Sequence[tuple[int, int]]) -> GraphLayout:
    """The layout of boxes of these widths; edges run from an earlier box to a later one."""
    depth = _depths(len(widths), edges)
    sizes = list(widths)
    level = list(depth)
    chains: list[list[int]] = []
    for start, end in edges:
        chain = [start]
        for between in range(depth[start] + 1, depth[end]):
            chain.append(len(sizes))
            sizes.append(_POINT)
            level.append(between)
        chains.append([*chain, end])
    above: dict[int, list[int]] = defaultdict(list)
    below: dict[int, list[int]] = defaultdict(list)
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            below[a].append(b)
            above[b].append(a)
    rows: list[list[int]] = [[] for _ in range(max(level, default=-1) + 1)]
    for item, at in enumerate(level):
        rows[at].append(item)
    x = _placed(rows, sizes, above, below)
    left = min((x[item] - sizes[item] / 2 for item in range(len(sizes))), default=0.0)
    right = max((x[item] + sizes[item] / 2 for item in range(len(sizes))), default=0.0)
    places = [(x[item] - left, float(level[item])) for item in range(len(sizes))]
    routes = [[places[item] for item in chain] for chain in chains]
    return GraphLayout(places[: len(widths)], routes, right - left, len(rows))


def _depths(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    depth = [0] * count
    readers: dict[int, list[int]] = defaultdict(list)
    makers: dict[int, list[int]] = defaultdict(list)
    for start, end in edges:
        readers[start].append(end)
        makers[end].append(start)
    for box in range(count):
        depth[box] = max((depth[maker] + 1 for maker in makers[box]), default=0)
    for box in reversed(range(count)):  # what nothing feeds stands right above its reader
        if not makers[box] and readers[box]:
            depth[box] = min(depth[reader] for reader in readers[box]) - 1
    return depth


def _placed(
    rows: list[list[int]],
    sizes: Sequence[float],
    above: Mapping[int, Sequence[int]],
    below: Mapping[int, Sequence[int]],
) -> dict[int, float]:
    x: dict[int, float] = {}
    for row in rows:
        x.update(_packed(row, sizes, dict.fromkeys(row, 0.0)))
    for sweep in range(_SWEEPS):
        order, beside = (rows, above) if sweep % 2 == 0 else (rows[::-1], below)
        for row in order:
            wished = {
                item: sum(x[other] for other in beside[item]) / len(beside[item])
                if beside.get(item)
                else x[item]
                for item in row
            }
            row.sort(key=lambda item: wished[item])  # stable: ties stay as they are
            x.update(_packed(row, sizes, wished))
    return x


def _packed(
    row: Sequence[int], sizes: Sequence[float], wished: Mapping[int, float]
) -> dict[int, float]:
    """Places in the order of the row, as near to the wishes as widths allow.

    Between the places when pushed to the right and when pushed to the left, which both fit.
    """
    right: list[float] = []
    for at, item in enumerate(row):
        least = right[-1] + (sizes[row[at - 1]] + sizes[item]) / 2 + _GAP if at else wished[item]
        right.append(max(wished[item], least))
    left: list[float] = []
    for at, item in enumerate(reversed(row)):
        most = (
            left[-1] - (sizes[row[len(row) - at]] + sizes[item]) / 2 - _GAP if at else wished[item]
        )
        left.append(min(wished[item], most))
    left.reverse()
    return {item: (a + b) / 2 for item, a, b in zip(row, right, left, strict=True)}
