"""One run of `quantize-weights`: integer weights, float computation.

    choose the form -> raise the opset -> find codes, weight after weight -> store them all

Owns: the order of these steps, which weights are left alone, and what the report says of them. Not
here: codes (see `weight_rounding`), their place in the graph (see `weight_storage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.errors import NotApplicable
from onnxslim.graph.clone import adopt, clone_graph
from onnxslim.graph.ir import Graph, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.layer_pass import error_words
from onnxslim.lossy.problems import MAX_INPUTS, Problem, Problems, Schedule, assign
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.raising import raise_for
from onnxslim.quantization.grid import GridForm
from onnxslim.quantization.weight_layouts import stored_bytes
from onnxslim.quantization.weight_rounding import QuantizedWeight, Rounding, quantized_weight
from onnxslim.quantization.weight_scales import PerBlock, PerChannel, WeightForm
from onnxslim.quantization.weight_storage import (
    StorageForm,
    StorageKind,
    StoragePlan,
    is_half,
    replace_constant,
    storage_plan,
    why_not_stored,
)
from onnxslim.records import Change, Fidelity, PassResult, Skip
from onnxslim.render.timing import latency_text
from onnxslim.render.units import bytes_text
from onnxslim.solvers.threads import threads_for

_OVERHEAD_BYTES: Final = 200  # of a node, its names, and the headers of its tensors
_INTEGER_KERNELS: Final = (StorageKind.LINEAR, StorageKind.PACKED, StorageKind.GATHERED)


@dataclass(frozen=True)
class WeightOnlyOptions:
    """The options of `quantize-weights`, as its page explains them.

    Attributes:
        block: input columns that share a scale; 0: all of an output channel.
        rounding: how weights are rounded; None: with feedback if there are samples.
        layers: which layers the user selects.
        schedule: in which order the second moments of their inputs are measured.
    """

    bits: int
    block: int
    symmetric: bool
    rounding: Rounding | None
    form: StorageForm
    accuracy_level: int
    layers: LayerFilter
    schedule: Schedule

    def plan(self, layer: WeightLayer, form: StorageForm) -> StoragePlan:
        """How the weight of `layer` is stored under `form`."""
        return storage_plan(layer, form, self.bits, self.block, self.accuracy_level)

    def weight_form(self, layer: WeightLayer, plan: StoragePlan) -> WeightForm:
        """Which codes the weight of `layer` may have."""
        symmetric = self.is_symmetric(plan)
        grid = GridForm(np.dtype(np.int8), symmetric=symmetric, bits=self.bits)
        in_blocks = plan.block and plan.block < layer.columns
        block = plan.block if in_blocks else None
        granularity = PerBlock(block) if block else PerChannel()
        return WeightForm(grid, granularity, full_range=symmetric and self.bits == 4)

    def is_symmetric(self, plan: StoragePlan) -> bool:
        """Whether codes stored by `plan` have no zero points; those that Gather picks never do."""
        return self.symmetric or plan.kind is StorageKind.GATHERED


@dataclass(frozen=True)
class _LayerWeight:
    """A quantized weight, the name of the layer whose weight it replaces, and words for it."""

    layer: str
    weight: QuantizedWeight
    plan: StoragePlan
    words: str


class WeightOnlyRun:
    """A graph whose weights become integers; the graph changes at the very end, if at all.

    Attributes:
        form: how integers are stored; AUTO until `result` has chosen.
        is_timed: whether timing chose it.
    """

    def __init__(self, options: WeightOnlyOptions, graph: gs.Graph, context: Context) -> None:
        """Copy the model; `graph` is the one that `result` changes."""
        self.options, self.graph, self.context = options, graph, context
        self.form = options.form
        self.is_timed = False
        self.changes: list[Change] = []
        self.skips: dict[tuple[str, str], Skip] = {}
        self.model = None if context.model is None else context.model.clone()
        self.work: Graph = clone_graph(graph) if self.model is None else self.model.graph
        self.rounding = Rounding.NEAREST
        if context.calibration is not None:
            self.rounding = options.rounding or Rounding.FEEDBACK

    def result(self) -> PassResult:
        """Quantize, and say what was done, which may be nothing."""
        self._choose_form()
        self._raise_opset()
        weights = self._layer_weights()
        if not weights:
            return PassResult(skips=tuple(self.skips.values()))
        made, done = self._stored(weights)
        adopt(self.graph, made)
        skips = (*self.skips.values(), *done.skips)
        return PassResult((*self.changes, *done.changes), skips, Fidelity.LOSSY)

    # ----------------------------------------------------------------- choose the form

    def _choose_form(self) -> None:
        """Replace AUTO: NATIVE, unless its kernels are timed to be slower than float here."""
        if self.form is not StorageForm.AUTO:
            return
        self.form = StorageForm.NATIVE
        stopwatch, before = self.context.stopwatch, self.context.model
        if stopwatch is None or before is None:
            return
        if not any(plan.kind in _INTEGER_KERNELS for plan in self._plans()):
            return
        trial = before.clone()
        plain = replace(self.options, form=StorageForm.NATIVE, rounding=Rounding.NEAREST)
        run = WeightOnlyRun(plain, trial.graph, replace(self.context, model=trial))
        if not run.result().changed:
            return
        trial.has_shapes = False
        self.is_timed = True
        with self.context.progress.step("timing kernels that compute with integers"):
            pair = stopwatch.pair(before, trial)
        if pair.is_slower:
            self.form = StorageForm.FOLDED
        text = f"with kernels that compute with integers {latency_text(pair)}: form={self.form}"
        self.changes.append(Change(self.graph.name, text))

    def _plans(self) -> list[StoragePlan]:
        """How the selected weights are stored in the working copy, if all goes well."""
        return [
            self.options.plan(layer, self.form)
            for layer in layers_by_name(self.work).values()
            if self.options.layers.accepts(layer.name)
        ]

    # ----------------------------------------------------------------- raise the opset

    def _raise_opset(self) -> None:
        """Bring the working copy to the opset that the selected weights need, if possible."""
        target = max((plan.needs_opset for plan in self._plans()), default=1)
        needs = "4-bit or blockwise weights" if target > 13 else "scales along an axis"
        model = self.model or Model.of(self.work)
        try:
            raised = raise_for(model, target, needs, self.context)
        except NotApplicable as reason:
            self._skip(self.graph.name, str(reason))
            return
        if raised is not None:
            self.changes.append(raised)

    # ----------------------------------------------------------------- find codes

    def _layer_weights(self) -> list[_LayerWeight]:
        """Codes of all selected weights; the working copy gets the values that they stand for."""
        rw = Rewriter(self.work)
        found = []
        context = replace(self.context, model=self.model)
        if self.rounding is Rounding.NEAREST:
            context = replace(context, calibration=None)
        options = self.options
        for problem in Problems(rw, context, options.layers, options.schedule, MAX_INPUTS):
            rounding = self.rounding if problem.has_data else Rounding.NEAREST
            found += self._layer_weight(rw, problem, rounding)
        for skip in rw.result().skips:
            self._skip(skip.node, skip.why)
        return found

    def _layer_weight(
        self, rw: Rewriter, problem: Problem, rounding: Rounding
    ) -> list[_LayerWeight]:
        """The codes of one weight; () where there is a reason against them."""
        layer = problem.layer
        plan = self._allowed_plan(layer)
        why = plan if isinstance(plan, str) else self._objection(layer, plan)
        if isinstance(plan, str) or why is not None:
            rw.skip(node_label(layer.node), str(why))
            return []
        with threads_for(layer.columns):
            weight = quantized_weight(problem, self.options.weight_form(layer, plan), rounding)
        words = self._words(problem, plan, weight.error)
        assign(rw, problem, weight.weight)  # later layers are measured behind the rounded weight
        return [_LayerWeight(layer.name, weight, plan, words)]

    def _allowed_plan(self, layer: WeightLayer) -> StoragePlan | str:
        """How a weight is stored in the working copy as it is; or why it cannot be."""
        why = ""
        for form in (self.form, StorageForm.FOLDED):  # FOLDED needs the lowest opset
            plan = self.options.plan(layer, form)
            objection = why_not_stored(self.work, layer, plan)
            if objection is None:
                return plan
            why = why or objection
        return why

    def _objection(self, layer: WeightLayer, plan: StoragePlan) -> str | None:
        """Why the weight itself should stay float; None where it need not."""
        holder = layer.holder
        if holder.dtype != np.float32 and not is_half(layer):
            return f"its weight is of type {holder.dtype}; codes have float32 scales"
        size_bytes = _OVERHEAD_BYTES + self._size_bytes(layer, plan)
        if size_bytes >= holder.nbytes:
            return (
                f"codes and scales would take {size_bytes:,} bytes, the weight takes "
                f"{holder.nbytes:,}"
            )
        if not np.isfinite([holder.values.min(), holder.values.max()]).all():
            return "it has values that are not finite"
        return None

    def _size_bytes(self, layer: WeightLayer, plan: StoragePlan) -> int:
        return stored_bytes(
            layer,
            plan.bits,
            plan.block,
            symmetric=self.options.is_symmetric(plan),
            is_padded=plan.kind is StorageKind.PACKED,
        )

    def _words(self, problem: Problem, plan: StoragePlan, error: float) -> str:
        """The change of a weight, for the report."""
        layer, block = problem.layer, plan.block
        by = f"a scale for {block} columns" if block else "a scale for each output"
        return (
            f"{layer.size:,} weights in {plan.bits} bits, {by}, as {plan.kind.value}: "
            f"{bytes_text(layer.holder.nbytes)} to {bytes_text(self._size_bytes(layer, plan))}; "
            f"{error_words(problem, error)}"
        )

    # ----------------------------------------------------------------- store

    def _stored(self, weights: Sequence[_LayerWeight]) -> tuple[Graph, PassResult]:
        """A copy of the working copy with all codes in it."""
        copy = clone_graph(self.work)
        rw = Rewriter(copy)
        layers = layers_by_name(copy)
        for item in weights:
            replace_constant(rw, layers[item.layer], item.weight, item.plan, item.words)
        return copy, rw.result()

    def _skip(self, label: str, why: str) -> None:
        self.skips.setdefault((label, why), Skip(label, why))


def layers_by_name(graph: gs.Graph) -> dict[str, WeightLayer]:
    """The weight layers of `graph`."""
    return {layer.name: layer for layer in weight_layers(graph)[0]}
