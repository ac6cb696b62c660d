"""One run of `quantize-weights`: integer weights, float computation.

    choose the form -> raise the opset -> untie tables -> find codes, weight after weight -> store

Owns: the order of these steps, which weights are left alone, and what the report says of them. Not
here: codes (see `weight_rounding`), which form suits a weight (see `weight_storage`), and writing
it (see `weight_nodes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.analysis.linear_operators import LinearOperator
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
from onnxslim.pipeline.targets import DEFAULT_TARGET, TargetEngine, Trait, target_of
from onnxslim.quantization.grid import GridForm
from onnxslim.quantization.weight_layouts import kernel_block, stored_bytes
from onnxslim.quantization.weight_nodes import replace_constant
from onnxslim.quantization.weight_readers import tied_product, untie
from onnxslim.quantization.weight_rounding import QuantizedWeight, Rounding, quantized_weight
from onnxslim.quantization.weight_scales import PerBlock, PerChannel, WeightForm
from onnxslim.quantization.weight_storage import (
    KERNEL_BLOCKS,
    StorageForm,
    StorageKind,
    StoragePlan,
    could_have_kernel,
    is_half,
    storage_plan,
    why_not_stored,
)
from onnxslim.records import Change, Fidelity, PassResult, Skip
from onnxslim.render.timing import latency_text
from onnxslim.render.units import bytes_text
from onnxslim.report import LatencyPair
from onnxslim.solvers.threads import threads_for

_SMALLER: Final = 0.99  # share of the bytes at which a file counts as smaller
_OVERHEAD_BYTES: Final = 200  # of a node, its names, and the headers of its tensors
_LEVEL: Final = 4  # accuracy level of MatMulNBits, unless another is measured to be faster
_INTEGER_KERNELS: Final = (StorageKind.LINEAR, StorageKind.PACKED, StorageKind.GATHERED)


@dataclass(frozen=True)
class WeightOnlyOptions:
    """The options of `quantize-weights`, as its page explains them.

    Attributes:
        block: input columns that share a scale, at most; 0: all of an output channel; None: what
            suits each weight.
        rounding: how weights are rounded; None: with feedback if there are samples.
        accuracy_level: of MatMulNBits; None: 4, or 0 where that is measured to be faster.
        layers: which layers the user selects.
        schedule: in which order the second moments of their inputs are measured.
        clips: whether scales may clip weights; without, codes are found fast.
        target: the engine that the file is for.
    """

    bits: int
    block: int | None
    symmetric: bool
    rounding: Rounding | None
    form: StorageForm
    accuracy_level: int | None
    layers: LayerFilter
    schedule: Schedule
    clips: bool = True
    target: TargetEngine = field(default_factory=lambda: target_of(DEFAULT_TARGET))

    def plan(self, layer: WeightLayer, form: StorageForm) -> StoragePlan:
        """How the weight of `layer` is stored under `form`."""
        level = _LEVEL if self.accuracy_level is None else self.accuracy_level
        return storage_plan(layer, form, self.bits, self.block, level, self.target)

    def plan_of_head(self, table: WeightLayer) -> StoragePlan:
        """How a copy of `table` is stored, of which onnxruntime makes a kernel."""
        block = KERNEL_BLOCKS[self.bits] if self.block is None else self.block
        size = kernel_block(table.columns, block) if block else None
        return StoragePlan(StorageKind.LINEAR, self.bits, size)

    def settled(self) -> WeightOnlyOptions:
        """The options without measurement: what is left open becomes what it is by default."""
        form = StorageForm.NATIVE if self.form is StorageForm.AUTO else self.form
        level = _LEVEL if self.accuracy_level is None else self.accuracy_level
        return replace(self, form=form, accuracy_level=level)

    @property
    def choice(self) -> str:
        """Form and accuracy level, as options spell them."""
        if self.form is not StorageForm.MATMUL_NBITS:
            return f"form={self.form}"
        return f"form={self.form}:accuracy-level={self.accuracy_level}"

    @property
    def may_compute_in_float(self) -> bool:
        """Whether MatMulNBits that computes in float is worth a trial: never with 8 bits."""
        forms = (StorageForm.AUTO, StorageForm.MATMUL_NBITS)
        return self.accuracy_level is None and self.bits == 4 and self.form in forms

    def weight_form(self, layer: WeightLayer, plan: StoragePlan) -> WeightForm:
        """Which codes the weight of `layer` may have."""
        symmetric = self.is_symmetric(plan)
        grid = GridForm(np.dtype(np.int8), symmetric=symmetric, bits=self.bits)
        in_blocks = plan.block and plan.block < layer.columns
        block = plan.block if in_blocks else None
        granularity = PerBlock(block) if block else PerChannel()
        is_full = symmetric and self.bits == 4
        return WeightForm(grid, granularity, full_range=is_full, clips=self.clips)

    def is_symmetric(self, plan: StoragePlan) -> bool:
        """Whether codes stored by `plan` have no zero points; those that Gather picks never do."""
        is_middle = self.symmetric or not self.target.takes(Trait.ZERO_POINTS)
        return is_middle or plan.is_picked or plan.kind is StorageKind.GATHERED


@dataclass(frozen=True)
class _LayerWeight:
    """A quantized weight, the name of the layer whose weight it replaces, and words for it."""

    layer: str
    weight: QuantizedWeight
    plan: StoragePlan
    words: str


@dataclass(frozen=True)
class _Trial:
    """Options, how fast a model quantized with them is against float, and its bytes."""

    options: WeightOnlyOptions
    pair: LatencyPair
    size: int

    def beats(self, other: _Trial) -> bool:
        """Whether it is faster, or smaller and not slower, than a trial that is preferred."""
        if self.pair.low > other.pair.high:
            return True
        return self.size < _SMALLER * other.size and self.pair.high >= other.pair.low


class WeightOnlyRun:
    """A graph whose weights become integers; the graph changes at the very end, if at all.

    Attributes:
        options: with form and accuracy level open until `result` has chosen.
        is_timed: whether timing chose them.
    """

    def __init__(self, options: WeightOnlyOptions, graph: gs.Graph, context: Context) -> None:
        """Copy the model; `graph` is the one that `result` changes."""
        self.options, self.graph, self.context = options, graph, context
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
        self._untie()
        weights = self._layer_weights()
        if not weights:
            return PassResult(skips=tuple(self.skips.values()))
        made, done = self._stored(weights)
        adopt(self.graph, made)
        skips = (*self.skips.values(), *done.skips)
        return PassResult((*self.changes, *done.changes), skips, Fidelity.LOSSY)

    # ----------------------------------------------------------------- choose the form

    def _choose_form(self) -> None:
        """Replace AUTO, and an accuracy level left open, by what is measured to be best."""
        wished, self.options = self.options, self.options.settled()
        before = self.context.model
        if self.context.stopwatch is None or before is None:
            return
        trials = [self._timed(before, options) for options in self._candidates(wished)]
        if not trials:
            return
        self.is_timed = True
        if wished.may_compute_in_float and not any(trial.pair.is_faster for trial in trials):
            form = StorageForm.MATMUL_NBITS
            trials.append(self._timed(before, replace(wished, form=form, accuracy_level=0)))
        best = trials[0]
        for trial in trials[1:]:
            best = trial if trial.beats(best) else best
        self.options = best.options
        if wished.form is StorageForm.AUTO and best.pair.is_slower:
            self.options = replace(best.options, form=StorageForm.FOLDED)
        what = f"with kernels that compute with integers {latency_text(best.pair)}"
        self.changes.append(Change(self.graph.name, f"{what}: {self.options.choice}"))

    def _candidates(self, wished: WeightOnlyOptions) -> list[WeightOnlyOptions]:
        """Which options are worth timing; the one to take without timing comes first."""
        forms = [StorageForm.NATIVE, StorageForm.MATMUL_NBITS]
        if wished.form is StorageForm.MATMUL_NBITS and wished.accuracy_level is None:
            forms = [StorageForm.MATMUL_NBITS]
        elif wished.form is not StorageForm.AUTO:
            return []
        settled = wished.settled()
        found = {form: self._kernels(replace(settled, form=form)) for form in forms}
        if not any(found.values()):
            return []
        if len(forms) == 2 and found[forms[0]] == found[forms[1]]:
            forms.pop()  # the same kernels, written so that onnxruntime alone reads them
        return [replace(settled, form=form) for form in forms]

    def _kernels(self, options: WeightOnlyOptions) -> set[str]:
        """Names of the layers that compute with integers under `options`."""
        plans = self._plans(options)
        return {name for name, plan in plans.items() if plan.kind in _INTEGER_KERNELS}

    def _timed(self, before: Model, options: WeightOnlyOptions) -> _Trial:
        """A model quantized quickly, and how fast it is."""
        trial = before.clone()
        plain = replace(options, rounding=Rounding.NEAREST, clips=False)
        context = replace(self.context, model=trial, stopwatch=None)
        WeightOnlyRun(plain, trial.graph, context).result()
        trial.has_shapes = False
        assert self.context.stopwatch is not None  # the caller asked
        with self.context.progress.step("timing kernels that compute with integers"):
            pair = self.context.stopwatch.pair(before, trial)
        return _Trial(options, pair, trial.file_bytes())

    def _plans(self, options: WeightOnlyOptions) -> dict[str, StoragePlan]:
        """How the selected weights are stored in the working copy, if all goes well."""
        return {
            layer.name: options.plan(layer, options.form)
            for layer in layers_by_name(self.work).values()
            if options.layers.accepts(layer.name)
        }

    # ----------------------------------------------------------------- prepare the graph

    def _raise_opset(self) -> None:
        """Bring the working copy to the opset that the selected weights need, if possible."""
        plans = list(self._plans(self.options).values())
        plans += [plan for _, _, plan in self._ties()]
        target = max((plan.needs_opset for plan in plans), default=1)
        needs = "4-bit or blockwise weights" if target > 13 else "scales along an axis"
        model = self.model or Model.of(self.work)
        try:
            raised = raise_for(model, target, needs, self.context)
        except NotApplicable as reason:
            self._skip(self.graph.name, str(reason))
            return
        if raised is not None:
            self.changes.append(raised)

    def _untie(self) -> None:
        """Give products their own copies of the tables that they read, where kernels need it."""
        rw = Rewriter(self.work)
        for table, product, plan in self._ties():
            if (self.work.opset_of("") or 1) >= plan.needs_opset:
                untie(rw, table, product)
        self.changes += rw.result().changes

    def _ties(self) -> list[tuple[WeightLayer, LinearOperator, StoragePlan]]:
        """Tables to untie: a Gather, the product that reads the table too, and how it is stored."""
        options, found = self.options, {}
        if options.form is not StorageForm.NATIVE:
            return []
        layers = layers_by_name(self.work)
        for table in layers.values():
            product = tied_product(self.work, table)
            names = (table.name, *table.shared)
            is_wanted = all(name in layers and options.layers.accepts(name) for name in names)
            if product is None or not is_wanted or is_half(table):
                continue
            plan = options.plan_of_head(table)
            is_kernel = could_have_kernel(product, self.work, options.block)
            if (plan.block and table.columns % plan.block) or plan.objection(options.target):
                continue
            why = why_not_stored(self.work, table, replace(plan, bits=8, block=None))
            if is_kernel and (why or self._objection(table, plan)) is None:
                found[id(table.holder)] = (table, product, plan)
        return list(found.values())

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
        plan = self.options.plan(layer, self.options.form)
        plans = [plan, self.options.plan(layer, StorageForm.FOLDED)]  # which needs the least opset
        if plan.kind is StorageKind.LINEAR and self.options.block is None:
            plans.insert(1, replace(plan, block=None))
        for plan in plans:
            objection = plan.objection(self.options.target)
            objection = objection or why_not_stored(self.work, layer, plan)
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
