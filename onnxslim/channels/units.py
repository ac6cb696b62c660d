"""Units: channels that leave together, and the reasons why some of them cannot leave.

Labels that a sweep merged are one unit, and a pin on one of them pins the unit. A unit must leave
whole slices of every tensor: where an axis of channels was split in two (a Reshape to (heads,
width)) and nothing in the graph says otherwise, the channels at the same place in all parts become
one unit. The groups of a grouped Conv only have to lose *as many* channels: that is a *balance*.

Owns: how units come out of a trace. Not here: the trace (see `tracing`), layers that share units
(see `groups`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
import numpy.typing as npt

from onnxslim.channels.labels import NONE, LabelArray, labelled_axes
from onnxslim.channels.tracing import ChannelTrace, GroupedConv, Ids


@dataclass(frozen=True)
class ChannelUnits:
    """The units of a graph, numbered from 0, and which of them cannot leave.

    Attributes:
        of: the unit of each label, (labels,).
        pins: for each unit that must stay, the reason.
        balances: parts that must lose equally many channels, each as the unit of each channel,
            (parts, channels of a part), `NONE` where it has none.
    """

    of: npt.NDArray[np.int64]
    pins: Mapping[int, str]
    balances: tuple[Ids, ...]

    @property
    def count(self) -> int:
        """The number of units."""
        return int(self.of.max(initial=-1)) + 1

    @cached_property
    def pinned(self) -> npt.NDArray[np.bool_]:
        """Whether each unit must stay, (units,)."""
        mask = np.zeros(self.count, bool)
        mask[list(self.pins)] = True
        return mask

    def of_ids(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The unit of each label, `NONE` for the label `NONE`; in the shape of `ids`."""
        return np.where(ids == NONE, NONE, self.of[ids])


def indexable(units: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask of units that `of_ids` may index: the last entry, for `NONE`, is False."""
    return np.append(units, [False])


def units_of(trace: ChannelTrace) -> ChannelUnits:
    """The units of a trace, merged further until every unit leaves whole slices of every tensor."""
    relation = nx.Graph()
    relation.add_nodes_from(range(trace.count))
    for a, b in trace.merges:
        relation.add_edges_from(zip(a.tolist(), b.tolist(), strict=True))
    pins = list(trace.pins)
    # a merge may make other units too large for a slice: repeat until nothing is left to merge
    while True:
        of = _components(relation, trace.count)
        loose = _without_pinned(of, pins)
        merges = list(_unbalanced(trace, loose))
        if not merges:
            break
        for a, b, label in merges:
            # a channel without a label stays: what would have to leave with it stays too
            free = (a == NONE) | (b == NONE)
            why = f"`{label}` would lose only a part of a slice, of which the rest must stay"
            pins += [(np.unique(ids[free & (ids != NONE)]), why) for ids in (a, b)]
            pairs = zip(a[~free].tolist(), b[~free].tolist(), strict=True)
            relation.add_edges_from(pairs)
    reasons: dict[int, str] = {}
    for ids, why in pins:
        for unit in np.unique(of[ids]).tolist():
            reasons.setdefault(unit, why)
    return ChannelUnits(of, reasons, tuple(_balances(trace, of, loose)))


def _without_pinned(
    of: npt.NDArray[np.int64], pins: Sequence[tuple[Ids, str]]
) -> npt.NDArray[np.int64]:
    """The component of each label, `NONE` if a pin keeps it, as if it had no label."""
    stays = np.zeros(int(of.max(initial=-1)) + 1, bool)
    for ids, _ in pins:
        stays[of[ids]] = True
    return np.where(stays[of], NONE, of)


def _balances(
    trace: ChannelTrace, of: npt.NDArray[np.int64], loose: npt.NDArray[np.int64]
) -> Iterator[Ids]:
    """The balances of grouped Convs, each once; none where units are balanced by themselves."""
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for grouped in trace.grouped_convs:
        sides = [ids for ids in (grouped.inputs, grouped.outputs) if ids is not None]
        if any(_is_whole(np.where(ids == NONE, NONE, loose[ids])) for ids in sides):
            continue
        for ids in sides:
            parts = np.where(ids == NONE, NONE, of[ids])
            ordered = np.sort(parts, axis=1)
            key = (parts.shape, parts.tobytes())
            if key in seen or (ordered == ordered[:1]).all():
                continue
            seen.add(key)
            yield parts


def _is_whole(parts: npt.NDArray[np.int64]) -> bool:
    """Whether each part, (parts, channels of a part), is one unit, and any of them may leave."""
    return _depends_on(parts, 0) and parts.shape[1] > 1 and bool((parts != NONE).any())


def _components(relation: nx.Graph, count: int) -> npt.NDArray[np.int64]:
    """The component of each label, numbered in the order of their first labels."""
    of = np.full(count, NONE)
    for number, component in enumerate(nx.connected_components(relation)):
        of[list(component)] = number
    _, first, inverse = np.unique(of, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return np.asarray(order[inverse.reshape(-1)], np.int64)


def _unbalanced(trace: ChannelTrace, of: npt.NDArray[np.int64]) -> Iterator[tuple[Ids, Ids, str]]:
    """Pairs of labels that must merge for units to leave whole slices, and of which tensor."""
    seen: set[int] = set()
    for tensor, labels in trace.labels.items():
        for array in labels:
            if id(array) in seen or len(labelled_axes(array)) < 2:
                continue
            seen.add(id(array))
            unit = np.where(array == NONE, NONE, of[array])
            if not any(_depends_on(unit, axis) for axis in labelled_axes(array)):
                # the last labelled axis keeps its labels: positions along the others merge
                others = labelled_axes(array) - {max(labelled_axes(array))}
                yield *_together(array, others), tensor.name
    for grouped in trace.grouped_convs:
        yield from _whole_groups(grouped, of)


def _whole_groups(
    grouped: GroupedConv, of: npt.NDArray[np.int64]
) -> Iterator[tuple[Ids, Ids, str]]:
    """Pairs that let the inputs of a group leave with its outputs, if either leave as a whole."""
    sides = (grouped.inputs, grouped.outputs)
    if grouped.inputs is None:
        sides = (np.full((len(grouped.outputs), 1), NONE), grouped.outputs)
    units = [np.where(ids == NONE, NONE, of[ids]) for ids in sides if ids is not None]
    for own, other in ((0, 1), (1, 0)):
        is_merged = _depends_on(units[other], 0) and (units[other][:, 0] == units[own][:, 0]).all()
        if _is_whole(units[own]) and not is_merged:
            ids, others = sides[own], sides[other]
            assert ids is not None
            assert others is not None
            first = np.broadcast_to(ids[:, :1], others.shape)
            yield first.reshape(-1), others.reshape(-1), grouped.label


def _depends_on(unit: npt.NDArray[np.int64], axis: int) -> bool:
    """Whether the position along `axis` alone says which unit it is."""
    first = unit
    for other in range(unit.ndim):
        if other != axis:
            first = first.take([0], other)
    return bool((unit == first).all())


def _together(array: LabelArray, axes: frozenset[int]) -> tuple[Ids, Ids]:
    """Pairs that merge all positions along `axes`."""
    first = array
    for axis in axes:
        first = first.take([0], axis)
    return np.broadcast_to(first, array.shape).reshape(-1), array.reshape(-1)
