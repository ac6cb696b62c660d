"""Which clusters become integers: the placement of least time, as an exact minimum cut.

Each cluster is on one of two sides. It takes a certain time on either, and a tensor that is made
on one side and read on the other goes through QuantizeLinear or DequantizeLinear once, however
many read it. All of that is submodular, so the cheapest cut of a flow network is the best
placement, not an approximation of it.

With the source on the integers' side:

    source -> c        capacity: c in float        c -> sink      capacity: c in integers
    z -> maker         capacity: QuantizeLinear    reader -> z    unbounded: z is on the integers'
                                                                  side once one reader is
    maker -> w         capacity: DequantizeLinear  w -> reader    unbounded: w is on the float side
                                                                  once one reader is
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

FLOAT = None
"""In place of the name of a cluster: what is computed in float whatever is chosen."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of something on either side."""

    float_ms: float
    int_ms: float


@dataclass(frozen=True)
class Wire:
    """A tensor that may cross.

    Attributes:
        maker: the cluster that makes it, or FLOAT.
        readers: the clusters that read it, FLOAT among them where something else does.
        quantize_ms, dequantize_ms: what crossing takes either way.
    """

    maker: str | None
    readers: tuple[str | None, ...]
    quantize_ms: float
    dequantize_ms: float


@dataclass(frozen=True)
class Costs:
    """What a placement takes.

    Attributes:
        clusters: times of every cluster that may be chosen, by name; others are in float.
        wires: all tensors between them.
    """

    clusters: Mapping[str, Times]
    wires: Sequence[Wire] = field(default_factory=tuple)

    def milliseconds(self, chosen: frozenset[str]) -> float:
        """Of all clusters and wires, with the clusters `chosen` as integers."""
        total = sum(
            times.int_ms if name in chosen else times.float_ms
            for name, times in self.clusters.items()
        )
        for wire in self.wires:
            sides = {reader in chosen for reader in wire.readers}
            if wire.maker not in chosen and True in sides:
                total += wire.quantize_ms
            if wire.maker in chosen and False in sides:
                total += wire.dequantize_ms
        return total


def best_placement(costs: Costs) -> frozenset[str]:
    """The names of the clusters to be computed on integers."""
    network = nx.DiGraph()
    source, sink = ("source",), ("sink",)
    network.add_nodes_from((source, sink))

    def side(name: str | None) -> tuple[str, ...]:
        return ("cluster", name) if name in costs.clusters and name is not None else sink

    def connect(tail: object, head: object, ms: float | None) -> None:
        """An edge, or more capacity on one that exists; None: unbounded."""
        if tail == head:
            return
        known = network.get_edge_data(tail, head)
        if ms is None or (known is not None and "capacity" not in known):
            network.add_edge(tail, head)
            network[tail][head].pop("capacity", None)
            return
        network.add_edge(tail, head, capacity=ms + (known["capacity"] if known else 0.0))

    for name, times in costs.clusters.items():
        connect(source, side(name), times.float_ms)
        connect(side(name), sink, times.int_ms)
    for number, wire in enumerate(costs.wires):
        quantized, read = ("quantized", number), ("read", number)
        connect(quantized, side(wire.maker), wire.quantize_ms)
        if side(wire.maker) != sink:
            connect(side(wire.maker), read, wire.dequantize_ms)
        for reader in dict.fromkeys(wire.readers):
            if side(reader) != sink:
                connect(side(reader), quantized, None)
            connect(read, side(reader), None)
    _, (ints, _) = nx.minimum_cut(network, source, sink)
    return frozenset(name for name in costs.clusters if ("cluster", name) in ints)


__all__ = ["FLOAT", "Costs", "Times", "Wire", "best_placement"]
