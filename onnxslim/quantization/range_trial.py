"""Whether products should find the ranges of their inputs at run time: a trial on a few samples.

The activations of transformers have outliers that differ from input to input, and residual sums
that 8 bits say too little of: with ranges from samples their outputs are lost, with those of run
time they hold. Convolutional networks lose nothing by ranges from samples, which are faster. Both
models are run on a few samples before anything is timed or fitted, which costs little, and spares
the search among placements that could not be used. Where products with weights are most of the
work, as in transformers, little has to be gained: integers of run time are as fast for them.

Owns: the comparison. Not here: what either model looks like (see `clusters` and `qdq`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from onnxslim.graph.counts import node_macs, sized_macs
from onnxslim.graph.ir import Node
from onnxslim.io.model import Model
from onnxslim.io.shapes import with_input_shapes
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.quantization.activation_grids import observe_grids
from onnxslim.quantization.calibration_ranges import RangeMethod
from onnxslim.quantization.clusters import Clusters, clusters_of, worth_observing
from onnxslim.quantization.grid import GridForm
from onnxslim.quantization.layer_codes import nearest_codes
from onnxslim.quantization.qdq import QdqPlan, quantized_copy
from onnxslim.quantization.rules import ActivationRanges, KernelKind
from onnxslim.quantization.weight_scales import WeightForm
from onnxslim.services.calibration import Calibration, Distance

_SAMPLES: Final = 4
_CLEARLY: Final = 0.25  # ranges of run time must leave at most this share of the divergence
_NEARER_AT_ALL: Final = 1.0  # the same, of transformers: kernels of both take alike times there
_MOST: Final = 0.5
_NEARER: Final = 0.5  # products alone must leave at most this share of it


@dataclass(frozen=True)
class NearerDynamic:
    """That ranges of run time leave the outputs clearly nearer.

    Attributes:
        words: the same with figures, for the report.
        is_sure: whether that holds whatever else is on integers.
        is_nearer_alone: whether the outputs are clearly nearer still where nothing else is on
            integers.
        products: names of the products.
    """

    words: str
    is_sure: bool
    is_nearer_alone: bool
    products: frozenset[str]


@dataclass(frozen=True)
class RangeTrial:
    """A model, and what it would be on integers.

    Attributes:
        model: the float model, its shapes inferred.
        reference: the model whose outputs are to be kept.
        layers: which operators may be on integers.
        form: the form of the grids of activations.
        static, dynamic: the forms of weights that meet ranges from samples, and of run time.
        calibration: the samples.
    """

    model: Model
    reference: Model
    layers: LayerFilter
    form: GridForm
    static: WeightForm
    dynamic: WeightForm
    calibration: Calibration

    def nearer_dynamic(self) -> NearerDynamic | None:
        """What ranges of run time gain; None where it is not clear that they do."""
        clusters = clusters_of(self.model.graph, ActivationRanges.DYNAMIC)
        accepted = [item for item in clusters.all if self.layers.accepts(item.name)]
        if not any(item.rule.kind is KernelKind.DYNAMIC for item in accepted):
            return None
        samples = self.calibration.some(_SAMPLES)
        plans = [
            self._plan(clusters_of(self.model.graph), self.static, samples),
            self._plan(clusters, self.dynamic, samples, ActivationRanges.DYNAMIC),
        ]
        between = (item.name for item in accepted if item.rule.kind.is_between_floats)
        plans.append(replace(plans[1], chosen=plans[1].chosen.intersection(between)))
        models = (quantized_copy(self.model, plan) for plan in plans)
        static, dynamic, alone = samples.distances(self.reference, models)
        is_nearer_alone = _share(alone, dynamic) <= _NEARER and plans[1].chosen != plans[2].chosen
        best = alone if is_nearer_alone else dynamic
        kind = KernelKind.DYNAMIC
        products = frozenset(item.name for item in accepted if item.rule.kind is kind)
        most = _NEARER_AT_ALL if self._are_most_work(products) else _CLEARLY
        if _share(best, static) > most:
            return None
        is_sure = _share(dynamic, static) <= most
        words = (
            "ranges of the inputs of MatMul and Gemm are found at run time: on a few samples SQNR "
            f"{best.sqnr_db:.1f} dB, and {static.sqnr_db:.1f} with ranges from samples"
        )
        return NearerDynamic(words, is_sure, is_nearer_alone, products)

    def _are_most_work(self, products: frozenset[str]) -> bool:
        """Whether the model has attention, and `products` do half of its work, or more."""
        if not any(map(_is_inner_softmax, self.model.graph.nodes)):
            return False  # a chain of dense layers stays on integers with ranges from samples
        shapes = self.calibration.extent(self.model).shapes
        graph = with_input_shapes(self.model, shapes).graph
        clusters = clusters_of(graph, ActivationRanges.DYNAMIC).all
        own = sum(node_macs(item.node) or 0 for item in clusters if item.name in products)
        return own >= _MOST * sized_macs(graph)

    def _plan(
        self,
        clusters: Clusters,
        weights: WeightForm,
        samples: Calibration,
        ranges: ActivationRanges = ActivationRanges.STATIC,
    ) -> QdqPlan:
        """Everything on integers that may be, with weights rounded to nearest."""
        names = worth_observing(clusters, ranges)
        own = [c for c in clusters.all if c.name in names and self.layers.accepts(c.name)]
        grids = observe_grids(self.model, own, samples, RangeMethod.MSE, self.form)
        codes = nearest_codes(self.model, clusters, weights)
        chosen = frozenset(
            cluster.name
            for cluster in own
            if grids.objection(cluster) is None
            and (cluster.rule.kind is not KernelKind.LAYER or cluster.name in codes)
        )
        return QdqPlan(chosen, grids.by_tensor, codes, self.form, weights, ranges)


def _is_inner_softmax(node: Node) -> bool:
    return node.op in ("Softmax", "Attention") and any(item.outputs for item in node.outputs)


def _share(found: Distance, other: Distance) -> float:
    """The divergence of `found` as a share of the other's; 0 where the other lost its outputs."""
    if not math.isfinite(other.divergence):
        return 0.0 if math.isfinite(found.divergence) else 1.0
    return found.divergence / other.divergence if other.divergence > 0 else 1.0
