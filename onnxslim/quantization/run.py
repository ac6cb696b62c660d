"""One run of `quantize-int8`.

    prepare -> observe -> place -> (round -> choose ranges -> hold the floors) -> insert

Where operators go back to float to hold the floors, weights and ranges are fitted again to those
that stay, so that a run with these alone gives the same.

Owns: the order of these steps, and what the report says of them. Not here: each step (see the
modules that it imports), and the options as a user spells them (see the pass).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.graph.clone import adopt
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Goal
from onnxslim.pipeline.raising import raise_for
from onnxslim.pipeline.targets import Trait
from onnxslim.quantization.activation_grids import observe_grids
from onnxslim.quantization.calibration_ranges import CalibrationRange
from onnxslim.quantization.clusters import (
    clusters_of,
    worth_observing,
)
from onnxslim.quantization.effort import CHOOSING, JUDGING, SEEING, affordable_runs
from onnxslim.quantization.equalize import equalize
from onnxslim.quantization.float_fallback import DivergenceLimits, FloatFallback
from onnxslim.quantization.grid import Grid, GridForm, LayerCodes
from onnxslim.quantization.int8_options import CodeType, Decision, Int8Options, Placement
from onnxslim.quantization.kernel_forms import sums_to_adds
from onnxslim.quantization.layer_codes import nearest_codes, solved_codes
from onnxslim.quantization.placement_search import PlacementSearch, TimedPlacement
from onnxslim.quantization.product_smoothing import FEWEST_SAMPLES, SAMPLES, ProductSmoothing
from onnxslim.quantization.qdq import QdqPlan, grid_source, insert_qdq, quantized_copy
from onnxslim.quantization.range_choice import (
    CHOICES,
    FEWEST_TOGETHER,
    TOGETHER,
    RangeByTensor,
    RangeCandidates,
    nearest_ranges,
)
from onnxslim.quantization.range_trial import RangeTrial
from onnxslim.quantization.rules import ActivationRanges, KernelKind
from onnxslim.quantization.saturation import saturates
from onnxslim.quantization.smooth import smooth
from onnxslim.quantization.tied_tables import untied_tables
from onnxslim.quantization.weight_rounding import Rounding
from onnxslim.quantization.weight_scales import PerChannel, PerTensor, WeightForm
from onnxslim.records import Change, Fidelity, PassResult, Skip
from onnxslim.services.calibration import Distance
from onnxslim.services.stopwatch import Stopwatch

PatternCheck = Callable[[Sequence[str], Sequence[str]], None]

_FLOAT_BESIDE: Final = "it stays float between products that find their ranges at run time"
_MOST: Final = 0.5  # share of the time that products alone must take to be worth it alone
_SCALES_OPSET: Final = 13  # the first in which scales go along an axis
# Products of transformers read few rows, and the largest of them in few channels: feedback fits the
# samples, and loses rows of other inputs.
_ROUNDINGS: Final = {KernelKind.LAYER: Rounding.FEEDBACK, KernelKind.DYNAMIC: Rounding.NEAREST}


class Int8Run:
    """A graph on its way to integers; the graph itself changes at the very end, if at all.

    Attributes:
        decision: what was settled; None until `result` has changed the graph.
    """

    def __init__(
        self, options: Int8Options, graph: gs.Graph, context: Context, check: PatternCheck
    ) -> None:
        """Prepare a copy of the model.

        Args:
            options: what the user asks for.
            graph: to be changed.
            context: with calibration samples, and the model of `graph`.
            check: raises UsageError where a pattern of the options matches none of the names
                that it gets: of clusters, and of operators that stay float.

        Raises:
            NotApplicable: the model's opset is too low and cannot be raised.
        """
        assert context.calibration is not None
        assert context.model is not None
        self.options, self.graph, self.context, self.check = options, graph, context, check
        self.original, self.calibration = context.model, context.calibration
        self.reference = context.reference or context.model
        self.decision: Decision | None = None
        self.changes: list[Change] = []
        self.skips: list[Skip] = []
        self.model = self._prepared()
        self.clusters = clusters_of(self.model.graph)
        takes = context.engine.takes
        self.activations = options.activations or _preferred_activations()
        if not takes(Trait.UNSIGNED):
            self.activations = CodeType.S8
        symmetric = options.symmetric or not takes(Trait.ZERO_POINTS)
        self.form = GridForm(self.activations.dtype, symmetric=symmetric)
        self.is_reduced = self._reduced(self.activations)
        grid = GridForm(options.weights.dtype, symmetric=True, reduced=self.is_reduced)
        self.weights = WeightForm(grid, PerChannel() if options.per_channel else PerTensor())
        self.recurrent = replace(self.weights, grid=self._dynamic_grid(grid))
        self.ranges = ActivationRanges.STATIC
        self.is_nearer_alone = self.are_products_alone = False
        self.codes: Mapping[str, LayerCodes] = {}
        self.smoothing: ProductSmoothing | None = None
        self.found: Mapping[str, Sequence[CalibrationRange]] = {}
        self.effects: dict[tuple[int, int], float] = {}
        self.grids: dict[str, Grid] = {}

    def result(self) -> PassResult:
        """Quantize, and say what was done, which may be nothing.

        Raises:
            UsageError: `only` or `skip` names something that is not there.
        """
        self._choose_ranges_source()
        candidates = self._candidates()
        placed = self._placed(candidates)
        if not placed:
            return PassResult(skips=tuple(self.skips))
        chosen = self._fitted(placed)
        if not chosen:
            self._say_skip("with any integer kernel, max-error or a floor is missed")
            return PassResult(skips=tuple(self.skips))
        self._settle(candidates, chosen)
        rewriter = Rewriter(self.model.graph)
        self.ties.retie(rewriter, self.clusters, chosen)
        insert_qdq(rewriter, self.clusters, self._plan(chosen))
        done = rewriter.result()
        adopt(self.graph, self.model.graph)
        smoothed = () if self.smoothing is None else self.smoothing.changes
        changes = (*smoothed, *done.changes, *self.changes)
        return PassResult(changes, (*self.skips, *done.skips), Fidelity.LOSSY)

    # ----------------------------------------------------------------- prepare

    def _prepared(self) -> Model:
        """A copy of the model in the forms that have integer kernels."""
        model = self.original.clone()
        raised = raise_for(model, _SCALES_OPSET, "scales along an axis", self.context)
        if raised is not None:
            self.changes.append(raised)
        infer_shapes(model)
        rewriter = Rewriter(model.graph)
        sums_to_adds(rewriter)
        self.ties = untied_tables(rewriter, self.options.layers.accepts)
        if self.options.equalize:
            equalize(rewriter)
        self._finish(model, rewriter)
        return model

    def _finish(self, model: Model, rewriter: Rewriter) -> None:
        """Close an edit of `model` before anything is on integers."""
        done = rewriter.result()
        self.changes += done.changes
        model.has_shapes = model.has_shapes and not done.changed
        infer_shapes(model)

    def _dynamic_grid(self, grid: GridForm) -> GridForm:
        """The form of grids of weights that meet ranges of run time, which are always u8."""
        kinds = {cluster.rule.kind for cluster in self.clusters.all}
        is_met = KernelKind.RECURRENT in kinds or self._has_products()
        if self.activations is CodeType.U8 or not is_met:
            return grid
        return replace(grid, reduced=self._reduced(CodeType.U8))

    def _has_products(self) -> bool:
        """Whether there are products that could find ranges at run time."""
        found = clusters_of(self.model.graph, ActivationRanges.DYNAMIC).all
        return any(cluster.rule.kind is KernelKind.DYNAMIC for cluster in found)

    def _reduced(self, activations: CodeType) -> bool:
        """Whether weights that meet such activations take 7 bits."""
        if self.options.reduce_range is not None:
            return self.options.reduce_range
        evaluate, weights = self.context.evaluate, self.options.weights
        reduced = evaluate is not None and saturates(evaluate, activations.dtype, weights.dtype)
        if reduced:
            self._say(
                f"weights take 7 bits: sums of two products {activations}·{weights} saturate at "
                "16 bits on this processor (reduce-range=true)"
            )
        return reduced

    # ----------------------------------------------------------------- static or dynamic

    def _choose_ranges_source(self) -> None:
        """Settle whether products find their ranges at run time, and smooth their inputs."""
        why = self.context.engine.objection(Trait.RUN_TIME_RANGES)
        if why is not None:
            if self.options.ranges is ActivationRanges.DYNAMIC:
                self._say(f"ranges come from samples: {why}")
        else:
            self.ranges = self.options.ranges or self._nearer_ranges()
        self.clusters = clusters_of(self.model.graph, self.ranges)
        if self.ranges is ActivationRanges.DYNAMIC:
            self.weights, self.is_reduced = self.recurrent, self.recurrent.grid.reduced
        elif self.options.smooth:
            rewriter = Rewriter(self.model.graph)
            smooth(rewriter, replace(self.context, model=self.model, target=self.model))
            self._finish(self.model, rewriter)
        self._set_codes(nearest_codes(self.model, self.clusters, self.weights))

    def _nearer_ranges(self) -> ActivationRanges:
        """Ranges of run time where those from samples leave the outputs clearly further."""
        trial = RangeTrial(
            self.model,
            self.reference,
            self.options.layers,
            self.form,
            self.weights,
            self.recurrent,
            self.calibration,
        )
        with self.context.progress.step("comparing ranges from samples with those of run time"):
            found = trial.nearer_dynamic()
        if found is None or not (found.is_sure or self._take_most_time(found.products)):
            return ActivationRanges.STATIC
        self._say(found.words)
        self.is_nearer_alone = found.is_nearer_alone and found.is_sure
        self.are_products_alone = not found.is_sure
        return ActivationRanges.DYNAMIC

    def _take_most_time(self, products: frozenset[str]) -> bool:
        """Whether the float model spends half of its time, or more, in `products`."""
        stopwatch = self.context.stopwatch
        if stopwatch is None or self.options.placement is not Placement.MEASURED:
            return False
        kernels = stopwatch.profile(self.model)
        own = sum(kernel.ms for kernel in kernels if kernel.node in products)
        return own >= _MOST * sum(kernel.ms for kernel in kernels)

    def _smooth_products(self, names: frozenset[str]) -> None:
        """Smooth the inputs of those of the clusters `names` that find ranges at run time."""
        options = self.options
        if self.ranges is not ActivationRanges.DYNAMIC or options.smooth is False:
            return
        if self.smoothing is None:
            self.smoothing = ProductSmoothing(
                self.model,
                self.weights.grid,
                self.calibration.some(self._smoothing_samples()),
                self.context.progress,
                options.alpha_of,
            )
        if self.smoothing.names == names:
            return
        self.model = self.smoothing.smoothed(names)
        self.effects.clear()  # they were those of another model
        self.clusters = clusters_of(self.model.graph, self.ranges)
        self._set_codes(nearest_codes(self.model, self.clusters, self.weights))

    def _smoothing_samples(self) -> int:
        """How many samples smoothing sees."""
        return max(FEWEST_SAMPLES, min(SAMPLES, int(self._affordable_runs(SEEING))))

    def _affordable_runs(self, budget: float) -> float:
        return affordable_runs(self.model, self.calibration.extent(self.model).shapes, budget)

    # ----------------------------------------------------------------- observe

    def _candidates(self) -> frozenset[str]:
        """Clusters that may become integers; of the others, the report says why not."""
        self.skips += self.clusters.skips
        names = [cluster.name for cluster in self.clusters.all]
        self.check(names, [skip.node for skip in self.clusters.skips])
        wanted = frozenset(name for name in names if self.options.layers.accepts(name))
        beside = worth_observing(self.clusters, self.ranges)
        if self.are_products_alone:
            beside &= self._between_floats()
        with self.context.progress.step("observing ranges of activations"):
            grids = observe_grids(
                self.model,
                [cluster for cluster in self.clusters.all if cluster.name in beside],
                self.calibration,
                self.options.method,
                self.form,
            )
        self.found, self.grids = grids.found, dict(grids.by_tensor)
        found = []
        for cluster in self.clusters.all:
            why = grids.objection(cluster) if cluster.name in beside else _FLOAT_BESIDE
            why = why or self._engine_objection(cluster.rule.kind)
            if cluster.name not in wanted:
                why = "`only` and `skip` leave it out"
            elif cluster.rule.kind is KernelKind.LAYER and cluster.name not in self.codes:
                why = "its weight or bias is of a form that has no integer kernel"
            if why is None:
                found.append(cluster.name)
            else:
                self.skips.append(Skip(cluster.name, why))
        return self._settled(frozenset(found))

    def _settled(self, chosen: frozenset[str]) -> frozenset[str]:
        """What of `chosen` is worth being on integers without the others."""
        return self.ties.settled(self.clusters, chosen)

    def _engine_objection(self, kind: KernelKind) -> str | None:
        """Why the engine would not take a kernel of this kind; None: it would."""
        needed = {KernelKind.RECURRENT: Trait.CONTRIB, KernelKind.TABLE: Trait.DECODERS}.get(kind)
        return None if needed is None else self.context.engine.objection(needed)

    # ----------------------------------------------------------------- place

    def _placed(self, candidates: frozenset[str]) -> frozenset[str]:
        """The clusters that become integers, before floors have a say."""
        if not candidates:
            self._say_skip("no operator can become an integer kernel")
            return candidates
        self._smooth_products(candidates)
        if self.options.placement is Placement.ALL:
            return candidates
        if self.options.placement is Placement.LAYERS:
            layers = (cluster.name for cluster in self.clusters.all if cluster.is_layer)
            return candidates.intersection(layers)
        if self.context.stopwatch is None:
            self._say("every operator that can be, as the goal is bytes: nothing was timed")
            return candidates
        found = self._searched(candidates, self.context.stopwatch)
        if self.is_nearer_alone and self.context.goal is not Goal.BYTES:
            alone = candidates & self._between_floats()
            nearer = self._searched(alone, self.context.stopwatch) if alone else None
            if nearer is not None and nearer.is_about_as_fast_as(found):
                found = nearer
        return frozenset() if found is None else found.chosen

    def _between_floats(self) -> frozenset[str]:
        """The clusters that read and make floats."""
        return frozenset(c.name for c in self.clusters.all if c.rule.kind.is_between_floats)

    def _searched(self, candidates: frozenset[str], stopwatch: Stopwatch) -> TimedPlacement | None:
        """The placement that is fastest here; for bytes, the fastest with all weights in it."""
        search = PlacementSearch(
            self.model,
            self.original,
            self.clusters,
            candidates,
            self._settled,
            self._plan,
            stopwatch,
            self.context.progress,
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
        return QdqPlan(chosen, self.grids, self.codes, self.form, self.recurrent, self.ranges)

    def _quantized(self, chosen: frozenset[str]) -> Model:
        """A copy of the model, as it is smoothed now, with the clusters `chosen` on integers."""
        return quantized_copy(self.model, self._plan(chosen))

    def _plan_with(self, chosen: frozenset[str], ranges: RangeByTensor) -> QdqPlan:
        grids = {**self.grids, **{name: item.grid for name, item in ranges.items()}}
        return replace(self._plan(chosen), grids=grids)

    # ----------------------------------------------------------------- round

    def _fitted(self, placed: frozenset[str]) -> frozenset[str]:
        """Fit weights and ranges of what may stay on integers so that all limits hold."""
        observed, chosen, words = self.grids, placed, None
        while chosen:
            self.grids = dict(observed)
            self._smooth_products(chosen)
            self._round(chosen)
            words = self._choose_ranges(chosen)
            left = self._within_limits(chosen)
            if left == chosen:
                break
            chosen = left
        if words is not None:
            self._say(words)
        return chosen

    def _round(self, chosen: frozenset[str]) -> None:
        """Solve the weights of the chosen layers for good."""
        # where channels were scaled, layers of the original return something else
        is_scaled = self.options.equalize or self.options.smooth or self.smoothing is not None
        target = None if is_scaled else self.context.target
        context = replace(self.context, target=target or self.model)
        for kind, preferred in _ROUNDINGS.items():
            layers = [
                cluster.name
                for cluster in self.clusters.all
                if cluster.name in chosen and cluster.rule.kind is kind
            ]
            solved = solved_codes(
                self.model,
                layers,
                context,
                self.weights,
                self.options.rounding or preferred,
                keep_means=self.options.bias_correct,
            )
            self._set_codes({**self.codes, **solved})

    def _set_codes(self, codes: Mapping[str, LayerCodes]) -> None:
        """Take `codes`, those of tables from the products that are tied to them."""
        self.codes = self.ties.shared(self.clusters, codes)

    # ----------------------------------------------------------------- choose ranges

    def _choose_ranges(self, chosen: frozenset[str]) -> str | None:
        """Keep those of the observed ranges that leave the outputs nearest; says which, if any."""
        if self.options.method is not None:
            return None
        used = {
            grid_source(self.clusters, chosen, tensor).name: None
            for cluster in self.clusters.all
            if cluster.name in chosen
            for tensor in cluster.tensors
        }
        if not used:
            return None
        judged = int(self._affordable_runs(JUDGING) / CHOICES)
        held = self.calibration.halves()[1].some(max(FEWEST_TOGETHER, min(TOGETHER, judged)))

        def together(choices: Sequence[RangeByTensor]) -> Iterable[Distance]:
            plans = (self._plan_with(chosen, ranges) for ranges in choices)
            return held.distances(self.reference, (quantized_copy(self.model, p) for p in plans))

        found = {name: self.found[name] for name in used}
        runs = self._affordable_runs(CHOOSING)
        candidates = RangeCandidates(
            found, self.model, held, self.context.progress, runs, self.effects
        )
        chosen_ranges, words = nearest_ranges(candidates, together)
        self.grids.update((name, item.grid) for name, item in chosen_ranges.items())
        return words

    # ----------------------------------------------------------------- hold the floors

    @cached_property
    def _fallback(self) -> FloatFallback:
        """One for all rounds of fitting, as it knows the accuracy of the reference."""
        return FloatFallback(
            self._quantized,
            self.reference,
            self._settled,
            self.calibration,
            DivergenceLimits(self.options.max_error, self.context.floors, self.context.accuracy),
            self.context.progress,
        )

    def _within_limits(self, chosen: frozenset[str]) -> frozenset[str]:
        """What may stay on integers so that `max-error` and the floors hold."""
        if not self._fallback.limits.are_set:
            return chosen
        units = [
            frozenset({cluster.name})
            for cluster in self.clusters.all
            if cluster.name in chosen and cluster.rule.kind is not KernelKind.MOVEMENT
        ]
        left, back = self._fallback.restore(chosen, units)
        self.skips += back
        is_measured = self.options.placement is Placement.MEASURED
        if back and left and is_measured and self.context.goal is not Goal.BYTES:
            left = self._still_faster(left)
        return left

    def _still_faster(self, chosen: frozenset[str]) -> frozenset[str]:
        """`chosen` if the model is faster than float with it, else nothing."""
        assert self.context.stopwatch is not None
        candidate = self._quantized(chosen)
        pair = self.context.stopwatch.pair(self.original, candidate)
        tried = TimedPlacement("what holds the floors", chosen, pair)
        if pair.is_faster:
            self._say(str(tried))
            return chosen
        self._say_skip(f"{tried}: that does not pay")
        return frozenset()

    # ----------------------------------------------------------------- report

    def _settle(self, candidates: frozenset[str], chosen: frozenset[str]) -> None:
        known = {skip.node for skip in self.skips}
        for name in sorted(candidates - chosen - known):
            self.skips.append(Skip(name, "with it in float the model is faster"))
        order = [cluster.name for cluster in self.clusters.all]
        self.decision = Decision(
            tuple(name for name in order if name in chosen),
            tuple(name for name in order if name in candidates - chosen),
            self.activations,
            self.is_reduced,
            self.ranges if self._has_products() else None,
            {} if self.smoothing is None else dict(self.smoothing.alphas),
        )

    def _say(self, what: str) -> None:
        self.changes.append(Change(self.graph.name, what))

    def _say_skip(self, why: str) -> None:
        self.skips.append(Skip(self.graph.name, why))


def _preferred_activations() -> CodeType:
    """The type of activations with the faster kernels on this processor."""
    is_arm = platform.machine().lower().startswith(("arm", "aarch"))
    return CodeType.S8 if is_arm else CodeType.U8
