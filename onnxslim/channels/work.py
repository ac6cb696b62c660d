"""The cost of a graph as a function of the units that are gone: multiply-accumulates, bytes, time.

The cost of a layer is proportional to the number of channels that it reads times the number that it
writes, in each of its groups. The caller gives the cost of each layer with all channels. The result
is exact for multiply-accumulates and bytes of weights, and a first guess for time, which is
measured again on the whole model.

Owns: costs. Not here: which units should go for them (see `levels`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxslim.channels.groups import ChannelGroup, Channels
from onnxslim.channels.tracing import Member
from onnxslim.channels.units import indexable
from onnxslim.graph.ir import Node

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass
class LayerWork:
    """The cost of one layer.

    Attributes:
        cost: with all channels.
        sides: the units that the layer reads or writes, each (groups, channels of a group).
    """

    cost: float
    sides: list[Ids] = field(default_factory=list)

    def left(self, gone: Mask) -> float:
        """The cost without the units that are gone; `gone` is `indexable`."""
        kept = [1.0 - gone[side].mean(axis=1) for side in self.sides]
        return self.cost * share_left(kept)


def share_left(kept: Sequence[Array]) -> float:
    """The share of a layer that is left, from the shares left of each side, (groups,)."""
    return float(np.mean(np.prod(kept, axis=0)))


@dataclass
class Work:
    """The costs of all layers that channels are cut out of, and the fixed cost of all else."""

    layers: dict[Node, LayerWork] = field(default_factory=dict)
    fixed: float = 0.0

    @classmethod
    def of(cls, channels: Channels, costs: Mapping[Node, float], fixed: float = 0.0) -> Work:
        """The work of a graph, by the costs of layers with all channels and of all other nodes.

        Layers that `costs` does not list cost nothing.
        """
        work = cls(fixed=fixed)
        trace, units = channels.trace, channels.units
        for member in (*trace.writers, *trace.readers):
            groups = 1 if member.layer is None else _groups_of(member)
            side = units.of_ids(member.ids).reshape(groups, -1)
            work._layer(member.node, costs).sides.append(side)
        for node, ids in trace.channelwise:
            if node.op in ("Conv", "ConvTranspose"):  # depthwise: each channel costs the same
                work._layer(node, costs).sides.append(units.of_ids(ids)[None])
        return work

    def _layer(self, node: Node, costs: Mapping[Node, float]) -> LayerWork:
        return self.layers.setdefault(node, LayerWork(costs.get(node, 0.0)))

    @property
    def whole(self) -> float:
        """The cost with all units."""
        return self.fixed + sum(layer.cost for layer in self.layers.values())

    def left(self, gone: Mask) -> float:
        """The cost without the units that are gone, (units,)."""
        known = indexable(gone)
        return self.fixed + sum(layer.left(known) for layer in self.layers.values())


def _groups_of(member: Member) -> int:
    """The groups of a Conv; 1 for other layers, whose stacks share their channels."""
    return int(member.node.attrs.get("group", 1)) if member.node.op.startswith("Conv") else 1


def channel_work(channels: Channels, groups: Sequence[ChannelGroup]) -> Work:
    """The number of channels that the groups write, as a cost: what a budget of `ratio` counts."""
    units = channels.units
    written = {member.node: member for group in groups for member in group.writers}
    return Work(
        {
            node: LayerWork(float(len(member.ids)), [units.of_ids(member.ids)[None]])
            for node, member in written.items()
            if not units.pinned[units.of[member.ids]].all()
        }
    )
