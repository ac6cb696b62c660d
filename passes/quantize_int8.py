"""Compute on 8-bit integers (QDQ form) wherever that is measured to be faster than float.

Rewrite:
    An operator that onnxruntime has an integer kernel for gets a QuantizeLinear and a
    DequantizeLinear behind what it reads and makes; weights become int8 initializers with a scale
    for each output channel, biases int32. Onnxruntime makes one integer kernel of it:

        y = Conv (x, w, b)

    becomes

        xq = QuantizeLinear (x, x_scale, x_zero)
        xd = DequantizeLinear (xq, x_scale, x_zero)
        wd = DequantizeLinear <axis: int = 0> (w_codes, w_scale, w_zero)
        bd = DequantizeLinear <axis: int = 0> (b_codes, b_scale, b_zero)
        yf = Conv (xd, wd, bd)
        yq = QuantizeLinear (yf, y_scale, y_zero)
        y = DequantizeLinear (yq, y_scale, y_zero)

    Conv, Gemm, MatMul, Add (also what was written as Sum), Mul, Concat, AveragePool,
    GlobalAveragePool, Sigmoid, LeakyRelu, Softmax inside the graph, and BatchNormalization and
    HardSigmoid as depthwise Convs; a Relu or Clip behind them becomes the end of a range.
    MaxPool, Resize to the nearest, Reshape, Transpose, Split, Slice, Gather and the like move
    integers, on the grid of what they move. What stays in float among
    integer kernels has a Clip without bounds beside it where onnxruntime would put it on integers
    all the same. An opset below 13 is raised to 13.
    LSTM becomes onnxruntime's DynamicQuantizeLSTM, in bodies too: it reads and makes floats, and
    finds the range of each step's input at run time; its weights become int8.

    Which of them: `placement=measured` profiles the model in float and on integers, and finds the
    set of kernels with the least total time, crossings between float and integers included, as a
    minimum cut. That, what comes out when it is profiled and cut again, everything, and layers
    alone are then timed as whole models, in one run; the fastest is kept, and of those that timing
    cannot tell apart the one that is by the profiles. Where none is faster than float,
    nothing is changed, but with `--goal bytes`: then every weight becomes integers, and the report
    says how much faster or slower that is. `placement=all` and `conv-matmul` ask no clock.

Why it is correct:
    It is not exact. x ≈ scale·(code − zero point), to half a scale inside the range, and zero is
    always exact, so padding is. Ranges come from the calibration samples. By default each tensor
    gets that, of five methods', which moves the outputs least when it alone is on its grid; where
    the integer model is clearly nearer with the ranges of least error, or with one method for all
    tensors, it is these; all on samples held back. Softmax has the grid
    that its kernel needs, from 0 to 1. Weights are rounded with error feedback, so that what
    rounding one of them does to the output E‖(W − Ŵ)x‖² is made up for by the others (layers of
    more than 8,192 inputs: to nearest); biases keep the mean output. Where products of u8 and s8
    saturate on this machine, weights take 7 bits.

Declines when:
    1. There are no calibration samples: ranges cannot be known.
    2. The model is quantized already.
    3. No placement is faster than float (`placement=measured`), unless the goal is bytes.
    4. An operator has no integer kernel in onnxruntime, its weight is computed at run time, or its
       type is not float32; bodies of If and Loop stay float, LSTMs in them excepted, and so do
       LayerNormalization, GRU, and a Softmax whose result is an answer.
    5. The grid of a tensor loses more than 2 % of its energy, or what goes into a Concat is too
       small for the steps of the result (scores beside the corners of boxes).
    6. `only` and `skip` leave it out; or it was put back to float, worst first, until `max-error`
       and the floors held on samples held back, and `--max-drop` on what `--eval` measures (the
       user's own figure for boxes or texts).

Fidelity:
    LOSSY.

Reference:
    Jacob et al., arXiv:1712.05877 (grids, biases); Nagel et al., arXiv:1906.04721 (equalization,
    bias correction); Nagel et al., arXiv:2004.10568 (adaround); Frantar et al., arXiv:2210.17323
    (feedback); Xiao et al., arXiv:2211.10438 (smooth); Migacz, GTC 2017 (entropy). We differ:
    placement is an exact minimum cut over measured times, and confirmed on the whole model.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.clone import adopt
from onnxslim.graph.ir import walk_graphs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.layer_filter import FilteredPass, only_option, skip_option
from onnxslim.pipeline.options import at_least, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Goal
from onnxslim.pipeline.replayable import replay_note
from onnxslim.quantization.activation_grids import observe_grids
from onnxslim.quantization.calibration_ranges import CalibrationRange, RangeMethod
from onnxslim.quantization.clusters import clusters_of, drop_isolated_movement, matching
from onnxslim.quantization.equalize import equalize
from onnxslim.quantization.float_fallback import DivergenceLimits, FloatFallback
from onnxslim.quantization.grid import Grid, GridForm
from onnxslim.quantization.kernel_forms import sums_to_adds
from onnxslim.quantization.layer_codes import nearest_codes, solved_codes
from onnxslim.quantization.opset import raise_opset
from onnxslim.quantization.placement_search import PlacementSearch, TimedPlacement, quantized_copy
from onnxslim.quantization.qdq import LayerCodes, QdqPlan, grid_source, insert_qdq
from onnxslim.quantization.range_choice import (
    TOGETHER,
    RangeByTensor,
    RangeCandidates,
    nearest_ranges,
)
from onnxslim.quantization.recurrent import KERNEL
from onnxslim.quantization.rules import KernelKind
from onnxslim.quantization.saturation import saturates
from onnxslim.quantization.smooth import smooth
from onnxslim.quantization.weight_rounding import Rounding, WeightForm
from onnxslim.records import Change, Fidelity, PassResult, Skip
from onnxslim.services.calibration import Distance
from onnxslim.services.stopwatch import Stopwatch

_TYPES: Final = {"u8": np.dtype(np.uint8), "s8": np.dtype(np.int8)}
_QUANTIZED: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", KERNEL}
)


@dataclass(frozen=True)
class QuantizeInt8(FilteredPass):
    """Compute on 8-bit integers wherever that is measured to be faster than float."""

    name: ClassVar[str] = "quantize-int8"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    calibration: str = option(
        "auto",
        one_of("auto", *RangeMethod),
        "how ranges of activations are chosen; auto: what leaves the outputs nearest on samples "
        "held back",
    )
    activations: str = option(
        "auto",
        one_of("auto", *_TYPES),
        "type of activations; auto: u8, on ARM s8",
    )
    weights: str = option("s8", one_of(*_TYPES), "type of weights")
    per_channel: bool = option(default=True, help="a scale for each output channel of a weight")
    symmetric: bool = option(default=False, help="ranges of activations are symmetric about zero")
    reduce_range: bool | None = option(
        None,
        help="weights take 7 bits; default, or auto: where products of codes saturate here",
    )
    rounding: str = option(
        "feedback", one_of(*Rounding), "how weights are rounded: see `Why it is correct`"
    )
    equalize: bool = option(
        default=False, help="even out ranges of channels between layers, before all else"
    )
    bias_correct: bool = option(default=True, help="biases keep the mean output of their layers")
    smooth: bool = option(
        default=False, help="move ranges of activations into the weights of MatMul and Gemm"
    )
    placement: str = option(
        "measured",
        one_of("measured", "all", "conv-matmul"),
        "which operators become integers: what is fastest here, all that can, or layers",
    )
    only: tuple[str, ...] = only_option("operators to quantize")
    skip: tuple[str, ...] = skip_option("operators")
    max_error: float | None = option(
        None,
        at_least(0),
        "largest relative error of an output, on samples held back; operators go back to float "
        "until it holds",
    )

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse what cannot be done at all.

        Raises:
            NotApplicable: saying what to give.
        """
        if context.calibration is None or context.model is None:
            raise NotApplicable(
                "int8 needs calibration samples, to know the ranges of activations: give --calib"
            )
        ops = {node.op for inner in walk_graphs(graph) for node in inner.nodes}
        if ops & _QUANTIZED or any(op.startswith("QLinear") for op in ops):
            raise NotApplicable("the model is quantized already")
        for_bytes = context.goal is Goal.BYTES
        if self.placement == "measured" and context.stopwatch is None and not for_bytes:
            raise NotApplicable(
                "placement=measured needs models to be timed: leave out --no-latency, or choose "
                "placement=all or conv-matmul"
            )

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The operators with an integer kernel."""
        return tuple(cluster.name for cluster in clusters_of(graph).all)

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Prepare, observe, place, round, insert."""
        try:
            return _Run(self, graph, context).result()
        except NotApplicable as reason:
            return PassResult(skips=(Skip(graph.name, str(reason)),))


class _Run:
    """One run of the pass; `graph` changes at the very end, if at all."""

    def __init__(self, rule: QuantizeInt8, graph: gs.Graph, context: Context) -> None:
        assert context.calibration is not None
        assert context.model is not None
        self.rule, self.graph, self.context = rule, graph, context
        self.original, self.calibration = context.model, context.calibration
        self.changes: list[Change] = []
        self.skips: list[Skip] = []
        self.model = self._prepared()
        self.clusters = clusters_of(self.model.graph)
        self.activations = rule.activations
        if self.activations == "auto":
            self.activations = (
                "s8" if platform.machine().lower().startswith(("arm", "aarch")) else "u8"
            )
        self.form = GridForm(_TYPES[self.activations], symmetric=rule.symmetric)
        self.is_reduced = self._reduced(self.activations)
        grid = GridForm(_TYPES[rule.weights], symmetric=True, reduced=self.is_reduced)
        self.weights = WeightForm(grid, per_channel=rule.per_channel)
        self.recurrent = self._recurrent(grid)
        self.codes = nearest_codes(self.model, self.clusters, self.weights)
        self.found: Mapping[str, Sequence[CalibrationRange]] = {}
        self.grids: dict[str, Grid] = {}

    def result(self) -> PassResult:
        """What was done, which may be nothing."""
        candidates = self._candidates()
        placed = self._placed(candidates)
        if not placed:
            return PassResult(skips=tuple(self.skips))
        self._round(placed)
        self._choose_ranges(placed)
        chosen = self._within_limits(placed)
        if not chosen:
            self._say_skip("with any integer kernel, max-error or a floor is missed")
            return PassResult(skips=tuple(self.skips))
        self._report(candidates, chosen)
        rewriter = Rewriter(self.model.graph)
        insert_qdq(rewriter, self.clusters, self._plan(chosen))
        done = rewriter.result()
        adopt(self.graph, self.model.graph)
        changes = (*done.changes, *self.changes)
        return PassResult(changes, (*self.skips, *done.skips), Fidelity.LOSSY)

    # ----------------------------------------------------------------- before

    def _prepared(self) -> Model:
        """A copy in the forms that have integer kernels."""
        model = self.original.clone()
        raised = raise_opset(model.graph)
        if raised is not None:
            self._say("opset raised from {} to {}: scales along an axis need it".format(*raised))
        model.has_shapes = model.has_shapes and raised is None
        infer_shapes(model)
        rewriter = Rewriter(model.graph)
        sums_to_adds(rewriter)
        context = replace(self.context, model=model, reference=model)
        if self.rule.equalize:
            equalize(rewriter)
        if self.rule.smooth:
            smooth(rewriter, context)
        done = rewriter.result()
        self.changes += done.changes
        model.has_shapes = model.has_shapes and not done.changed
        infer_shapes(model)
        return model

    def _recurrent(self, grid: GridForm) -> WeightForm:
        """The form of weights of recurrent layers, which always read u8."""
        if self.activations != "u8" and any(
            cluster.rule.kind is KernelKind.RECURRENT for cluster in self.clusters.all
        ):
            grid = replace(grid, reduced=self._reduced("u8"))
        return WeightForm(grid, per_channel=self.rule.per_channel)

    def _reduced(self, activations: str) -> bool:
        if self.rule.reduce_range is not None:
            return self.rule.reduce_range
        kinds = (_TYPES[activations], _TYPES[self.rule.weights])
        evaluate = self.context.evaluate
        reduced = evaluate is not None and saturates(evaluate, *kinds)
        if reduced:
            self._say(
                f"weights take 7 bits: sums of two products {activations}·{self.rule.weights} "
                "saturate at 16 bits on this processor (reduce-range=true)"
            )
        return reduced

    def _candidates(self) -> frozenset[str]:
        """Clusters that may become integers; of the others, the report says why not.

        Raises:
            NotApplicable: `only` or `skip` names something that is not there.
        """
        self.skips += self.clusters.skips
        names = [cluster.name for cluster in self.clusters.all]
        self.rule.check_patterns(names, [skip.node for skip in self.clusters.skips])
        wanted = frozenset(names)
        if self.rule.only:
            wanted &= matching(self.clusters.all, self.rule.only)
        wanted -= matching(self.clusters.all, self.rule.skip)
        self._tell("ranges of activations")
        rule = self.rule.calibration
        method = None if rule == "auto" else RangeMethod(rule)
        grids = observe_grids(self.model, self.clusters, self.calibration, method, self.form)
        self.found, self.grids = grids.found, dict(grids.by_tensor)
        found = []
        for cluster in self.clusters.all:
            why = grids.objection(cluster)
            if cluster.name not in wanted:
                why = "`only` and `skip` leave it out"
            elif cluster.rule.kind is KernelKind.LAYER and cluster.name not in self.codes:
                why = "its weight or bias is of a form that has no integer kernel"
            if why is None:
                found.append(cluster.name)
            else:
                self.skips.append(Skip(cluster.name, why))
        return drop_isolated_movement(self.clusters, frozenset(found))

    # ----------------------------------------------------------------- choosing

    def _placed(self, candidates: frozenset[str]) -> frozenset[str]:
        """The clusters that become integers, before floors have a say."""
        if not candidates:
            self._say_skip("no operator can become an integer kernel")
            return candidates
        if self.rule.placement == "all":
            return candidates
        if self.rule.placement == "conv-matmul":
            layers = (cluster.name for cluster in self.clusters.all if cluster.is_layer)
            return candidates.intersection(layers)
        if self.context.stopwatch is None:
            self._say("every operator that can be, as the goal is bytes: nothing was timed")
            return candidates
        found = self._searched(candidates, self.context.stopwatch)
        return frozenset() if found is None else found.chosen

    def _searched(self, candidates: frozenset[str], stopwatch: Stopwatch) -> TimedPlacement | None:
        search = PlacementSearch(
            self.model, self.original, self.clusters, candidates, self._plan, stopwatch, self._tell
        )
        if self.context.goal is Goal.BYTES:
            smallest = search.smallest()
            self._say(f"every weight on integers, as the goal is bytes: {smallest}")
            return smallest
        found = search.run()
        words = "; ".join(map(str, search.tried))
        if found is None:
            self._say_skip(f"nothing that was tried is faster than float: {words}")
        else:
            self._say(f"tried: {words}")
        return found

    def _plan(self, chosen: frozenset[str]) -> QdqPlan:
        return QdqPlan(chosen, self.grids, self.codes, self.form, self.recurrent)

    def _plan_with(self, chosen: frozenset[str], ranges: RangeByTensor) -> QdqPlan:
        grids = {**self.grids, **{name: item.grid for name, item in ranges.items()}}
        return replace(self._plan(chosen), grids=grids)

    def _round(self, chosen: frozenset[str]) -> None:
        """Solve the weights of the chosen layers for good."""
        layers = [
            cluster.name
            for cluster in self.clusters.all
            if cluster.name in chosen and cluster.rule.kind is KernelKind.LAYER
        ]
        moved = self.rule.equalize or self.rule.smooth
        reference = None if moved else self.context.reference
        solved: dict[str, LayerCodes] = solved_codes(
            self.model,
            layers,
            replace(self.context, reference=reference or self.model),
            self.weights,
            Rounding(self.rule.rounding),
            keep_means=self.rule.bias_correct,
            tell=self._tell,
        )
        self.codes = {**self.codes, **solved}

    def _choose_ranges(self, chosen: frozenset[str]) -> None:
        """Of the ranges that were found, those that leave the outputs nearest."""
        if self.rule.calibration != "auto":
            return
        used = {
            grid_source(self.clusters, chosen, tensor).name: None
            for cluster in self.clusters.all
            if cluster.name in chosen
            for tensor in (*cluster.reads, *cluster.makes)
        }
        if not used:
            return
        held = self.calibration.halves()[1].some(TOGETHER)

        def together(choices: Sequence[RangeByTensor]) -> Iterable[Distance]:
            models = (
                quantized_copy(self.model, self._plan_with(chosen, own))[0] for own in choices
            )
            return held.distances(self.context.reference or self.original, models)

        found = {name: self.found[name] for name in used}
        choice = nearest_ranges(RangeCandidates(found, self.model, held, self._tell), together)
        self.grids.update((name, item.grid) for name, item in choice.ranges.items())
        self._say(choice.words)

    def _within_limits(self, chosen: frozenset[str]) -> frozenset[str]:
        """What may stay on integers so that `max-error` and the floors hold."""
        limits = DivergenceLimits(self.rule.max_error, self.context.floors, self.context.accuracy)
        if not limits.are_set:
            return chosen
        restorer = FloatFallback(
            self.model,
            self.context.reference or self.original,
            self._plan,
            partial(drop_isolated_movement, self.clusters),
            self.calibration.halves()[1],
            self.calibration,
            limits,
            self._tell,
        )
        units = [
            frozenset({cluster.name})
            for cluster in self.clusters.all
            if cluster.name in chosen and cluster.rule.kind is not KernelKind.MOVEMENT
        ]
        left, back = restorer.restore(chosen, units)
        for item in back:
            self.skips.append(Skip(item.name, f"back to float: {item}"))
        must_be_faster = self.rule.placement == "measured" and self.context.goal is not Goal.BYTES
        if back and left and must_be_faster:
            left = self._still_faster(left)
        return left

    def _still_faster(self, chosen: frozenset[str]) -> frozenset[str]:
        assert self.context.stopwatch is not None
        candidate, _ = quantized_copy(self.model, self._plan(chosen))
        pair = self.context.stopwatch.pair(self.original, candidate)
        tried = TimedPlacement("what holds the floors", chosen, pair)
        if pair.is_faster:
            self._say(str(tried))
            return chosen
        self._say_skip(f"{tried}: that does not pay")
        return frozenset()

    # ----------------------------------------------------------------- report

    def _report(self, candidates: frozenset[str], chosen: frozenset[str]) -> None:
        known = {skip.node for skip in self.skips}
        for name in sorted(candidates - chosen - known):
            self.skips.append(Skip(name, "with it in float the model is faster"))
        if self.rule.placement == "measured" or chosen != candidates:
            again = self._without_measuring(candidates, chosen)
            self._say(replay_note(again, decided_by="measuring"))

    def _without_measuring(
        self, candidates: frozenset[str], chosen: frozenset[str]
    ) -> QuantizeInt8:
        """The options that repeat what was decided by measuring."""
        order = [cluster.name for cluster in self.clusters.all]
        out = [name for name in order if name in candidates - chosen]
        rule = replace(
            self.rule,
            placement="all",
            activations=self.activations,
            reduce_range=self.is_reduced,
            max_error=None,
            skip=(*self.rule.skip, *out),
        )
        inside = tuple(name for name in order if name in chosen)
        shorter = replace(rule, only=inside, skip=())
        return min(rule, shorter, key=lambda item: len(str(item)))

    def _say(self, what: str) -> None:
        self.changes.append(Change(self.graph.name, what))

    def _say_skip(self, why: str) -> None:
        self.skips.append(Skip(self.graph.name, why))

    def _tell(self, text: str) -> None:
        self.context.tell(f"{self.rule.name}: {text}")
