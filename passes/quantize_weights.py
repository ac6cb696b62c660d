"""Store weights as integers of 8 or 4 bits; what is computed with them stays float.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N, 12] x) => (float[N, 8] y)
        <float[12, 8] w = {
             127,254,127,254,127,254,127,254,3,8,5,-10,-4,-6,-2,-2,0,2,2,6,4,10,-5,-8,-3,-4,-1,
             0,1,4,3,8,5,-10,-4,-6,-2,-2,0,2,2,6,4,10,-5,-8,-3,-4,-1,0,1,4,3,8,5,-10,-4,-6,-2,
             -2,0,2,2,6,4,10,-5,-8,-3,-4,-1,0,1,4,3,8,5,-10,-4,-6,-2,-2,0,2,2,6,4,10,-5,-8,-3,
             -4,-1,0,1,4}> {
        y = MatMul (x, w)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[N, 12] x) => (float[N, 8] y)
        <int8[12, 8] codes = {
             127,127,127,127,127,127,127,127,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,
             1,2,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,1,
             2,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,1,2},
         float[8] scale = {1,2,1,2,1,2,1,2}> {
        w = DequantizeLinear <axis: int = 1> (codes, scale)
        y = MatMul (x, w)
    }
    ```
    Weights of Conv, ConvTranspose, Gemm and MatMul, and tables of embeddings that Gather reads, in
    bodies too. What onnxruntime 1.31 does with each form was measured:

    - One MatMul or Gemm that reads a DequantizeLinear becomes one kernel, MatMulNBits, where scales
      go by output channel or by 16, 32, 64, ... columns. The weight stays integers in memory. For
      one row of input 3 to 4 times as fast as float; for 128 rows as fast with 4 bits, 1.5 times
      as slow with 8. The kernel rounds its *input* to 8 bits for each 32 columns (45 dB).
    - Any other DequantizeLinear (Conv, Gemm with transB, a weight with two readers, Relu or Clip
      and more behind it) is computed anew in every run. Cast and Mul are computed once, when a
      session starts.
    - Gather of codes keeps the table small; DequantizeLinear in front of Gather computes all of it.

    So `form=native` writes DequantizeLinear where there is a kernel (transB is turned for it),
    moves codes through Gather, and puts a local function of Cast and Mul everywhere else: a
    smaller file at the speed, and with the memory, of float. `auto` is that, and times it as a
    whole model: where it is slower than float, the local function is taken everywhere (`folded`).
    `dequantize` is DequantizeLinear everywhere. `matmul-nbits` writes MatMulNBits itself, for
    MatMul. 4 bits and blocks need opset 21, to which the model is raised; MatMulNBits needs none.

Why it is correct:
    It is not exact. w ≈ scale·(code − zero point), one scale for each output channel, or for each
    `block` of its columns. Scales are those, over a few ratios of clipping, that lose least; of 4
    bits all 16 codes are used, with a negative scale where the largest weight is positive.
    With calibration samples the codes minimise E‖(W − Ŵ)x‖², so that what rounding one weight does
    to the output is made up for by the others; biases keep the mean output. Without samples, and
    for layers of more than 8,192 inputs, H = I.

Declines when:
    1. The weight is computed at run time, quantized already, or not float32.
    2. Codes and scales would take as many bytes as the weight.
    3. It is shared with a layer that `only` and `skip` leave out.
    4. The opset is too low and cannot be raised (bodies, local functions): then 4 bits are only
       possible with MatMulNBits, and 8 bits as `folded`.
    5. A table of embeddings is no matrix, is read by columns, or is used as something else too
       (where that is a layer, the layer's codes serve both).

Fidelity:
    LOSSY.

Reference:
    Frantar et al., arXiv:2210.17323 (feedback, GPTQ); Dettmers and Zettlemoyer, arXiv:2212.09720
    (blocks at 4 bits); ONNX DequantizeLinear-21 (`block_size`); onnxruntime's ContribOperators,
    MatMulNBits. We differ: the target is what the original model's layer returned, and the form is
    chosen by what onnxruntime makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.errors import NotApplicable, UsageError
from onnxslim.graph.clone import adopt, clone_graph
from onnxslim.graph.ir import Graph, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.shapes import infer_shapes
from onnxslim.lossy.layer_pass import LayerPass, error_words
from onnxslim.lossy.problems import MAX_INPUTS, Problem, assign
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.options import Interval, OptionValue, at_least, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.quantization.grid import GridForm
from onnxslim.quantization.opset import raise_opset
from onnxslim.quantization.weight_layouts import is_block_of_kernel, stored_bytes
from onnxslim.quantization.weight_rounding import (
    QuantizedWeight,
    Rounding,
    WeightForm,
    quantized_weight,
)
from onnxslim.quantization.weight_storage import (
    StorageForm,
    StorageKind,
    StoragePlan,
    embeddings,
    replace_constant,
    storage_plan,
    why_not_stored,
)
from onnxslim.records import Change, Fidelity, PassResult, Skip
from onnxslim.render.units import bytes_text
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.threads import threads_for

_OVERHEAD_BYTES: Final = 200  # of a node, its names, and the headers of its tensors
_BLOCKS: Final = {4: 32, 8: 0}  # default, by bits
_PACKED_BLOCK: Final = 32  # default, of MatMulNBits
_COMPUTED: Final = (StorageKind.LINEAR, StorageKind.PACKED, StorageKind.GATHERED)


@dataclass(frozen=True)
class QuantizeWeights(LayerPass):
    """Store weights as integers of 8 or 4 bits; what is computed with them stays float."""

    name: ClassVar[str] = "quantize-weights"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"bits": (8, 4)}
    max_inputs: ClassVar[int | None] = MAX_INPUTS

    bits: int = option(8, Interval(4, 8), "of a code: 8 or 4")
    block: int | None = option(
        None,
        at_least(0),
        "input columns that share a scale; 0: all of an output channel; default: 32 with 4 bits or "
        "MatMulNBits, else 0",
    )
    symmetric: bool = option(default=True, help="zero is the middle code; no zero points are kept")
    rounding: str = option(
        "auto",
        one_of("auto", *Rounding),
        "how weights are rounded; auto: feedback with calibration samples, else nearest",
    )
    form: str = option("auto", one_of(*StorageForm), "how integers are stored: see `Rewrite`")
    accuracy_level: int = option(
        4,
        Interval(0, 4),
        "of MatMulNBits, with form=matmul-nbits: 4 rounds inputs to 8 bits; 0 computes in float",
    )

    def __post_init__(self) -> None:
        """Check options against each other.

        Raises:
            UsageError: `bits` is neither 8 nor 4, or MatMulNBits takes no such block.
        """
        super().__post_init__()
        if self.bits not in _BLOCKS:
            raise UsageError(f"Option `bits` of `{self.name}` must be 8 or 4; got {self.bits}.")
        if self.form == StorageForm.MATMUL_NBITS and not is_block_of_kernel(self.columns):
            raise UsageError(
                f"Option `block` of `{self.name}` must be a power of two, 16 or more, with "
                f"form=matmul-nbits; got {self.block}."
            )

    @property
    def columns(self) -> int:
        """Input columns that share a scale; 0: all."""
        if self.block is not None:
            return self.block
        return _PACKED_BLOCK if self.form == StorageForm.MATMUL_NBITS else _BLOCKS[self.bits]

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse patterns that say nothing of this model: they are hardly ever meant so.

        Raises:
            NotApplicable: naming the option, the pattern, and the layer that may be meant.
        """
        declined = (*weight_layers(graph)[1], *embeddings(graph)[1])
        self.check_patterns(self.targets(graph), [skip.node for skip in declined])

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The weight layers, and what reads embeddings."""
        found = (*embeddings(graph)[0], *weight_layers(graph)[0])
        return tuple(layer.name for layer in found)

    def grid(self, layer: WeightLayer, plan: StoragePlan) -> WeightForm:
        """Which codes the weight of `layer` may have."""
        symmetric = self.symmetric or plan.kind is StorageKind.GATHERED
        form = GridForm(np.dtype(np.int8), symmetric=symmetric, bits=self.bits)
        block = plan.block
        own = None if block and block >= layer.columns else block
        return WeightForm(form, block=own, full_range=symmetric and self.bits == 4)

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Find codes for every selected weight, then store them all."""
        return _Run(self, graph, context).result()


@dataclass(frozen=True)
class _Answer:
    """What is to be stored in place of the weight of a layer, by its name."""

    layer: str
    weight: QuantizedWeight
    plan: StoragePlan
    words: str


class _Run:
    """One run of the pass; `graph` changes at the very end, if at all."""

    def __init__(self, rule: QuantizeWeights, graph: gs.Graph, context: Context) -> None:
        self.rule, self.graph, self.context = rule, graph, context
        self.selection = LayerFilter(rule.only, rule.skip)
        self.form = StorageForm(rule.form)
        self.changes: list[Change] = []
        self.skips: dict[tuple[str, str], Skip] = {}
        self.model = None if context.model is None else context.model.clone()
        self.work: Graph = clone_graph(graph) if self.model is None else self.model.graph
        feeds_back = rule.rounding != "nearest" and context.calibration is not None
        self.rounding = Rounding.NEAREST
        if feeds_back:
            self.rounding = (
                Rounding.FEEDBACK if rule.rounding == "auto" else Rounding(rule.rounding)
            )

    def result(self) -> PassResult:
        """What was done, which may be nothing."""
        self._choose_form()
        self._raise_opset()
        answers = self._answers()
        if not answers:
            return PassResult(skips=tuple(self.skips.values()))
        made, done = self._put(answers)
        adopt(self.graph, made)
        skips = (*self.skips.values(), *done.skips)
        return PassResult((*self.changes, *done.changes), skips, Fidelity.LOSSY)

    # ----------------------------------------------------------------- before

    def _choose_form(self) -> None:
        """With `auto`, time the model with integer kernels, rounded to nearest."""
        stopwatch, before = self.context.stopwatch, self.context.model
        if self.form is not StorageForm.AUTO:
            return
        self.form = StorageForm.NATIVE
        if (
            stopwatch is None
            or before is None
            or not any(plan.kind in _COMPUTED for plan in self._plans())
        ):
            return
        self.context.tell("timing kernels that compute with integers")
        trial = before.clone()
        plain = replace(self.rule, form=str(StorageForm.NATIVE), rounding=str(Rounding.NEAREST))
        if not plain.run(trial.graph, replace(self.context, model=trial)).changed:
            return
        trial.has_shapes = False
        pair = stopwatch.pair(before, trial)
        if pair.is_slower:
            self.form = StorageForm.FOLDED
        text = (
            f"with kernels that compute with integers {pair.before.median:.3f} to "
            f"{pair.after.median:.3f} ms, ratio {pair.ratio:.3f}: form={self.form} repeats this "
            "choice"
        )
        self.changes.append(Change(self.graph.name, text))

    def _plans(self) -> list[StoragePlan]:
        """How the selected weights are stored in the working copy, if all goes well."""
        rule = self.rule
        layers = [*embeddings(self.work)[0], *weight_layers(self.work)[0]]
        return [
            storage_plan(layer, self.form, rule.bits, rule.columns, rule.accuracy_level)
            for layer in layers
            if self.selection.accepts(layer.name)
        ]

    def _raise_opset(self) -> None:
        """Bring the working copy to the opset that the selected weights need, if that can be."""
        plans = self._plans()
        target = max((plan.needs_opset for plan in plans), default=1)
        needs = "4-bit or blockwise weights" if target > 13 else "scales along an axis"
        try:
            raised = raise_opset(self.work, target, needs)
        except NotApplicable as reason:
            self._skip(self.graph.name, str(reason))
            return
        if raised is not None:
            text = "opset raised from {} to {}: {} need it".format(*raised, needs)
            self.changes.append(Change(self.graph.name, text))
            if self.model is not None:
                self.model.has_shapes = False
                infer_shapes(self.model)

    # ----------------------------------------------------------------- solving

    def _answers(self) -> list[_Answer]:
        """Codes of all selected weights; the working copy gets the values that they stand for."""
        rw = Rewriter(self.work)
        answers = []
        for problem in self._tables(rw):
            answers += self._answer(rw, problem, Rounding.NEAREST)
        context = replace(self.context, model=self.model)
        if self.rounding is Rounding.NEAREST:
            context = replace(context, calibration=None)
        for problem in self.rule.problems(rw, context):
            context.tell(f"rounding {problem.name}")
            answers += self._answer(rw, problem, self.rounding)
        for skip in rw.result().skips:
            self._skip(skip.node, skip.why)
        return answers

    def _tables(self, rw: Rewriter) -> Iterator[Problem]:
        """The selected tables of embeddings, without data: all rows count alike."""
        tables, skips = embeddings(self.work)
        served = {name for layer in weight_layers(self.work)[0] for name in layer.shared}
        for skip in skips:
            if skip.node not in served:  # else the codes of the layer serve both
                rw.skip(skip.node, skip.why)
        for layer in tables:
            if self.selection.accepts(layer.name):
                yield Problem((layer,), (Metric(None, layer.columns),))

    def _answer(self, rw: Rewriter, problem: Problem, rounding: Rounding) -> list[_Answer]:
        """The codes of one weight; none where there is a reason against them."""
        layer = problem.layer
        plan = self._allowed(layer)
        why = plan if isinstance(plan, str) else self._objection(layer, plan)
        if isinstance(plan, str) or why is not None:
            rw.skip(node_label(layer.node), str(why))
            return []
        with threads_for(layer.columns):
            weight = quantized_weight(problem, self.rule.grid(layer, plan), rounding)
        words = self._words(problem, plan, weight.error)
        assign(rw, problem, weight.weight)  # what follows is measured on what the codes stand for
        return [_Answer(layer.name, weight, plan, words)]

    def _allowed(self, layer: WeightLayer) -> StoragePlan | str:
        """How a weight is stored in the working copy as it is; or why it cannot be."""
        why = ""
        for form in (self.form, StorageForm.FOLDED):  # which needs the lowest opset
            rule = self.rule
            found = storage_plan(layer, form, rule.bits, rule.columns, rule.accuracy_level)
            objection = why_not_stored(self.work, layer, found)
            if objection is None:
                return found
            why = why or objection
        return why

    def _objection(self, layer: WeightLayer, plan: StoragePlan) -> str | None:
        """What of the weight itself speaks against codes, in words."""
        holder = layer.holder
        if holder.dtype != np.float32:
            return f"its weight is of type {holder.dtype}; codes have float32 scales"
        taken = _OVERHEAD_BYTES + self._bytes(layer, plan)
        if taken >= holder.nbytes:
            return (
                f"codes and scales would take {taken:,} bytes, the weight takes {holder.nbytes:,}"
            )
        if not np.isfinite([holder.values.min(), holder.values.max()]).all():
            return "it has values that are not finite"
        return None

    def _bytes(self, layer: WeightLayer, plan: StoragePlan) -> int:
        is_padded = plan.kind is StorageKind.PACKED
        symmetric = self.rule.symmetric or plan.kind is StorageKind.GATHERED
        return stored_bytes(layer, plan.bits, plan.block, symmetric=symmetric, is_padded=is_padded)

    def _words(self, problem: Problem, plan: StoragePlan, error: float) -> str:
        """What is done to a weight, in words."""
        layer, block = problem.layer, plan.block
        by = f"a scale for {block} columns" if block else "a scale for each output"
        return (
            f"{layer.size:,} weights in {plan.bits} bits, {by}, as {plan.kind.value}: "
            f"{bytes_text(layer.holder.nbytes)} to {bytes_text(self._bytes(layer, plan))}; "
            f"{error_words(problem, error)}"
        )

    # ----------------------------------------------------------------- storing

    def _put(self, answers: Sequence[_Answer]) -> tuple[Graph, PassResult]:
        """A copy of the working copy with all codes in it."""
        copy = clone_graph(self.work)
        rw = Rewriter(copy)
        layers = _layers(copy)
        for answer in answers:
            replace_constant(rw, layers[answer.layer], answer.weight, answer.plan, answer.words)
        return copy, rw.result()

    def _skip(self, label: str, why: str) -> None:
        self.skips.setdefault((label, why), Skip(label, why))


def _layers(graph: gs.Graph) -> dict[str, WeightLayer]:
    found = (*embeddings(graph)[0], *weight_layers(graph)[0])
    return {layer.name: layer for layer in found}
