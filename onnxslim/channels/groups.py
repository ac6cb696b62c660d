"""Channel groups: layers whose channels leave together, their units, and what pins them.

    groups = channel_groups(graph)
    shrink(rewriter, groups, gone)

A *unit* is the least that can leave: a channel of every tensor that has its labels. A *group* holds
the layers that write units in common, all the units that they write, and the layers that read them.

Owns: groups, and the cut. Not here: how units are found (see `units`), which leave (see `scoring`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxslim.channels import (
    rules_attention,
    rules_elementwise,
    rules_layers,
    rules_movement,
    rules_normalization,
    rules_parts,
)
from onnxslim.channels.cutting import Cutter, Mask, Removal
from onnxslim.channels.labels import ChannelLabels, labelled_axes
from onnxslim.channels.tracing import (
    ChannelRule,
    ChannelTrace,
    Member,
    trace_channels,
)
from onnxslim.channels.units import ChannelUnits, units_of
from onnxslim.graph.ir import Node
from onnxslim.graph.rewrite import Rewriter

RULES: Final[Mapping[str, ChannelRule]] = {
    **rules_layers.RULES,
    **rules_attention.RULES,
    **rules_normalization.RULES,
    **rules_elementwise.RULES,
    **rules_movement.RULES,
    **rules_parts.RULES,
}


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that write units in common.

    Attributes:
        name: the label of the first layer that writes the units.
        units: numbers of all units, in the order of the first writer's channels.
        writers: layers whose outputs are the units.
        readers: layers whose inputs are the units.
        channelwise: nodes in between with parameters for each channel (depthwise Conv,
            normalization), with the labels of these channels.
        pins: reasons why units must stay, with the number of units that each keeps.
        weightless_readers: nodes that use up units without weights (a product of two activations).
    """

    name: str
    units: npt.NDArray[np.int64]
    writers: tuple[Member, ...]
    readers: tuple[Member, ...]
    channelwise: tuple[tuple[Node, npt.NDArray[np.int64]], ...]
    pins: Mapping[str, int]
    weightless_readers: tuple[Node, ...]

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)


@dataclass(frozen=True)
class Channels:
    """All groups of a graph, and what they were found by."""

    trace: ChannelTrace
    units: ChannelUnits
    groups: tuple[ChannelGroup, ...]
    changes_signature: bool = False

    def of(self, graph: gs.Graph) -> Channels:
        """The channels of another graph, found in the same way: the same for a copy."""
        return channel_groups(graph, changes_signature=self.changes_signature)

    def free(self, group: ChannelGroup) -> npt.NDArray[np.int64]:
        """The units of a group that may leave."""
        return group.units[~self.units.pinned[group.units]]

    @cached_property
    def slices(self) -> tuple[npt.NDArray[np.int64], ...]:
        """The units along each labelled axis, once each: at least one of every entry must stay."""
        found: dict[bytes, npt.NDArray[np.int64]] = {}
        for labels in self.trace.labels.values():
            for array in labels:
                units = self.units.of_ids(array)
                for axis in labelled_axes(array):
                    others = tuple(ax for ax in range(array.ndim) if ax != axis)
                    spread = np.moveaxis(units, axis, 0).reshape(units.shape[axis], -1)
                    if others and not (spread == spread[:, :1]).all():
                        continue  # the position along another axis says which unit it is
                    own = np.unique(spread[:, 0])
                    if own[0] >= 0:  # a channel without a label stays anyway
                        found.setdefault(own.tobytes(), own)
        return tuple(found.values())


def channel_groups(
    graph: gs.Graph,
    *,
    changes_signature: bool = False,
    rules: Mapping[str, ChannelRule] = RULES,
) -> Channels:
    """The channel groups of a graph with inferred shapes and nodes in topological order.

    With `changes_signature`, inputs and outputs that are caches of keys and values may lose heads.
    """
    trace = trace_channels(graph, rules, changes_signature=changes_signature)
    units = units_of(trace)
    relation = nx.Graph()
    owner: dict[int, int] = {}
    for index, member in enumerate(trace.writers):
        relation.add_node(index)
        for unit in np.unique(units.of[member.ids]).tolist():
            relation.add_edge(index, owner.setdefault(unit, index))
    for parts in units.balances:
        bound = np.unique(parts[parts >= 0]).tolist()
        nx.add_path(relation, [owner[unit] for unit in bound])
    groups = [
        _group([trace.writers[index] for index in sorted(component)], trace, units)
        for component in nx.connected_components(relation)
    ]
    return Channels(trace, units, tuple(groups), changes_signature)


def _group(writers: list[Member], trace: ChannelTrace, units: ChannelUnits) -> ChannelGroup:
    found = np.concatenate([units.of[member.ids] for member in writers])
    _, first = np.unique(found, return_index=True)
    own = found[np.sort(first)]
    mask = np.zeros(units.count, bool)
    mask[own] = True

    def touches(ids: npt.NDArray[np.int64]) -> bool:
        named = units.of_ids(ids)
        return bool(mask[named[named >= 0]].any())

    pins = Counter(units.pins[unit] for unit in own.tolist() if unit in units.pins)
    return ChannelGroup(
        writers[0].label,
        own,
        tuple(writers),
        tuple(member for member in trace.readers if touches(member.ids)),
        tuple((node, ids) for node, ids in trace.channelwise if touches(ids)),
        dict(pins),
        tuple(dict.fromkeys(node for node, ids in trace.weightless_readers if touches(ids))),
    )


def shrink(rewriter: Rewriter, channels: Channels, gone: Mask) -> None:
    """Cut the units that are `gone`, (units,), out of the graph that `channels` was made of.

    Raises:
        ValueError: a pinned unit is to leave, or a tensor would lose its last channel.
    """
    if (gone & channels.units.pinned).any():
        unit = int(np.flatnonzero(gone & channels.units.pinned)[0])
        raise ValueError(f"Unit {unit} must stay: {channels.units.pins[unit]}.")
    if any(gone[own].all() for own in channels.slices):
        raise ValueError("A tensor would lose its last channel.")
    if not gone.any():
        return
    removal = Removal(gone[channels.units.of])
    Cutter(rewriter).run(channels.trace.edits, removal)
    signature = {*rewriter.main.inputs, *rewriter.main.outputs}
    for tensor, labels in channels.trace.labels.items():
        if tensor in signature:
            _shrink_declaration(tensor, labels, removal)
        else:
            _shrink_shape(tensor, labels, removal)


def _shrink_declaration(tensor: gs.Tensor, labels: ChannelLabels, removal: Removal) -> None:
    """Declare a shorter input or output."""
    for array in labels:
        for axis in labelled_axes(array):
            kept = removal.kept_along(array, axis)
            if not kept.all():
                tensor.shorten(axis, kept)


def _shrink_shape(tensor: gs.Tensor, labels: ChannelLabels, removal: Removal) -> None:
    """State the shape that is left of a tensor; what cannot be told is not declared any longer."""
    sizes = None if tensor.shape is None else list(tensor.shape)
    for array in labels:
        for axis in labelled_axes(array):
            kept = removal.kept_along(array, axis)
            if kept.all():
                continue
            if sizes is not None and isinstance(sizes[axis], int):
                sizes[axis] = int(kept.sum())
                continue
            tensor.info = None
            if sizes is not None:
                sizes[axis] = None  # a multiple of the period, which its name may tell
    tensor.shape = sizes
