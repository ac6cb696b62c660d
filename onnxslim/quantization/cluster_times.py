"""The time of every placement, in milliseconds, from profiles of some: costs for `lossy.min_cut`.

A kernel's time belongs to the cluster whose node it is named after. Two cases are not that simple:

- Fusion: in float, onnxruntime fuses a Conv and the Add behind it. Where a layer has no kernel and
  an elementwise cluster behind it runs as a Conv, the time is the layer's.
- Layout: float Convs work on blocks of channels, integer Convs on channels last. A tensor that
  crosses between them is reordered on both sides, so a crossing takes the time of these kernels,
  by the element, on top of QuantizeLinear or DequantizeLinear.

A profile of a mixed placement shows the true time of its crossings, which replaces the estimate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import node_label
from onnxslim.lossy.min_cut import NEVER_CHOSEN, ItemCost, PlacementCosts, Transfer
from onnxslim.quantization.clusters import Cluster, Clusters
from onnxslim.quantization.qdq import InsertedNodes
from onnxslim.services.stopwatch import Kernel

Shapes = Mapping[str, tuple[int, ...]]

_FUSING: Final = frozenset(
    {"Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "NhwcFusedConv"}
)
_MIN_ELEMENTS: Final = 4096  # smaller kernels say little about the time of an element
_DEFAULT_NS: Final = 0.25  # time of an element where no large kernel was seen


@dataclass
class _ElementRate:
    """Milliseconds by the element, over large kernels of one operator."""

    ms: float = 0.0
    elements: int = 0

    def add(self, kernel: Kernel) -> None:
        if kernel.elements >= _MIN_ELEMENTS:
            self.ms += kernel.ms
            self.elements += kernel.elements

    def of(self, elements: int) -> float:
        by_element = self.ms / self.elements if self.elements else _DEFAULT_NS * 1e-6
        return by_element * elements


@dataclass
class ClusterTimes:
    """The times of one model's clusters on either side, as far as profiles show them.

    Attributes:
        clusters: the clusters of the float model.
        candidates: names of the clusters that may be integers.
        shapes: the shapes of tensors, on the inputs of the profiles.
    """

    clusters: Clusters
    candidates: frozenset[str]
    shapes: Shapes
    _float_ms: dict[str, float] = field(default_factory=dict)
    _int_ms: dict[str, float] = field(default_factory=dict)
    _crossed: dict[tuple[str, str], float] = field(default_factory=dict)
    _start_ms: float = np.inf  # time of the shortest kernel: the overhead of any
    _rates: dict[str, _ElementRate] = field(default_factory=lambda: defaultdict(_ElementRate))

    def record(
        self,
        kernels: Sequence[Kernel],
        chosen: frozenset[str],
        inserted: InsertedNodes | None = None,
    ) -> None:
        """Record the profile of a model in which the clusters `chosen` are integers.

        Later profiles replace earlier figures.
        """
        spent: dict[str, float] = defaultdict(float)
        crossed: dict[tuple[str, str], float] = defaultdict(float)
        self._start_ms = min([self._start_ms, *(kernel.ms for kernel in kernels)])
        places = self._places(inserted)
        for kernel in kernels:
            if kernel.operator in ("QuantizeLinear", "DequantizeLinear"):
                self._rates[kernel.operator].add(kernel)
                tensor = None if inserted is None else inserted.crossings.get(kernel.node)
                if tensor is not None:
                    crossed[tensor, kernel.operator] += kernel.ms
                continue
            if kernel.is_inserted:
                self._rates[kernel.operator].add(kernel)
            name = places.get(kernel.node)
            if name is not None:
                spent[self._fused_into(name, kernel, spent, chosen)] += kernel.ms
        for cluster in self.clusters.all:
            side = self._int_ms if cluster.name in chosen else self._float_ms
            side[cluster.name] = spent[cluster.name]
        self._crossed.update(crossed)

    def costs(self) -> PlacementCosts:
        """The costs of every placement of the candidates."""
        times = {
            name: ItemCost(self._float_ms.get(name, 0.0), self._int_ms.get(name, 0.0))
            for name in self.candidates
        }
        return PlacementCosts(times, tuple(self._transfers()))

    # ------------------------------------------------------------------ kernels

    def _places(self, inserted: InsertedNodes | None) -> Mapping[str, str]:
        """The name of the cluster of each node of the profiled model, by the node's label."""
        places = {
            node_label(node): cluster.name
            for cluster in self.clusters.all
            for node in cluster.nodes
        }
        if inserted is not None:
            places.update(inserted.clusters)
        return places

    def _fused_into(
        self, name: str, kernel: Kernel, spent: Mapping[str, float], chosen: frozenset[str]
    ) -> str:
        """The cluster that a kernel's time belongs to: a layer that was fused with what follows."""
        cluster = self._by_name[name]
        if cluster.is_layer or name in chosen or kernel.operator not in _FUSING:
            return name
        makers = [self.clusters.maker(tensor) for tensor in cluster.reads]
        for maker in makers:
            if maker is not None and maker.is_layer and maker.name not in {*spent, *chosen}:
                return maker.name
        return name

    @cached_property
    def _by_name(self) -> Mapping[str, Cluster]:
        return {cluster.name: cluster for cluster in self.clusters.all}

    # ------------------------------------------------------------------ crossings

    def _transfers(self) -> Iterable[Transfer]:
        tensors = dict.fromkeys(
            tensor
            for cluster in self.clusters.all
            if cluster.name in self.candidates
            for tensor in cluster.tensors
        )
        for tensor in tensors:
            maker = self._side(self.clusters.maker(tensor))
            readers = tuple(dict.fromkeys(self._readers(tensor)))
            quantize, dequantize = self._crossing(tensor)
            yield Transfer(maker, readers, quantize, dequantize)

    def _side(self, cluster: Cluster | None) -> str | None:
        if cluster is None or cluster.name not in self.candidates:
            return NEVER_CHOSEN
        return cluster.name

    def _readers(self, tensor: gs.Tensor) -> Iterable[str | None]:
        for node in tensor.outputs:
            yield self._side(self.clusters.of(node))
        if tensor in self.clusters.outside:
            yield NEVER_CHOSEN

    def _crossing(self, tensor: gs.Tensor) -> tuple[float, float]:
        shape = self.shapes.get(tensor.name, ())
        elements = prod(shape)
        layout = 0.0
        if len(shape) > 2:  # matrices have no blocked layout
            layout = self._rates["ReorderOutput"].of(elements)
            layout += self._rates["Transpose"].of(elements)
        found = []
        for operator in ("QuantizeLinear", "DequantizeLinear"):
            estimate = self._start_ms + self._rates[operator].of(elements) + layout
            found.append(self._crossed.get((tensor.name, operator), estimate))
        return found[0], found[1]
