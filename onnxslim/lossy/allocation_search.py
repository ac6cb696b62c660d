"""Find the smallest allocation of zeros and values that holds the floors, by trying.

    offers of each layer -> allocation within a divergence -> candidate model -> floors held?
             next limit on the divergence <-'

Candidates are fitted on four fifths of the samples and judged on the others. The search ends when
a candidate uses nearly all that the floors allow.

`allocation` makes the offers; the caller gives, as a function, the passes that make an allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite, log
from typing import Final

from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.allocation import Allocation, Offer, offers_of
from onnxslim.lossy.problems import Problems, Schedule, Target
from onnxslim.lossy.spend import least_cost, total_cost
from onnxslim.pipeline.execution import run_stages
from onnxslim.pipeline.floors import Floors, share_used
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import PassResult
from onnxslim.services.calibration import Calibration, Distance

_TRIALS: Final = 6  # candidates that are made
_LOOKS: Final = 4 * _TRIALS  # limits that are looked at; most give an allocation tried before
_FIRST_DIVERGENCE: Final = 1e-3
_SLACK: Final = 0.8  # a candidate is small enough when it uses this share of what is allowed
_AIM: Final = 0.9  # the share that the next candidate should use
_STEP: Final = 16.0  # the largest factor between two limits while no miss, or no success, is known
_GROWTH: Final = 1.5  # divergence grows like this power of the share used, on small networks


@dataclass(frozen=True)
class AllocationOptions:
    """What an allocation is searched for.

    Attributes:
        layers: those that may change.
        packed: whether bytes are those of a packed file, else of the .onnx file.
        agreement: share of equal top-1 answers to keep where no floor applies.
        sqnr_db: SQNR to keep where no floor applies and outputs are no class scores.
    """

    layers: LayerFilter
    packed: bool
    agreement: float
    sqnr_db: float


@dataclass(frozen=True)
class AllocationTrial:
    """A candidate that was made and judged.

    Attributes:
        limit: on the divergence, for which the allocation was chosen.
        allocation: what was made.
        distance: of its outputs from those of the model.
        use: largest share of what a floor allows that it uses up; above 1, the floor is missed.
    """

    limit: float
    allocation: Allocation
    distance: Distance
    use: float


class AllocationSearch:
    """Finds the smallest allocation that holds the floors.

    Args:
        options: what is searched for.
        context: with calibration samples and the model.
        explicit: the passes that make an allocation.

    Attributes:
        trials: candidates made on the samples to fit, in the order of the limits looked at.
        missed: distances of the candidates that missed the floors once made on all samples.
    """

    def __init__(
        self,
        options: AllocationOptions,
        context: Context,
        explicit: Callable[[Allocation], Sequence[Pass]],
    ) -> None:
        assert context.calibration is not None
        assert context.model is not None
        self.options, self.context, self.explicit = options, context, explicit
        self.model: Model = context.model
        self.fitted, self.held = context.calibration.halves()
        self.accuracy = None
        if context.accuracy is not None and context.floors.max_drop is not None:
            self.accuracy = context.accuracy(self.model)
        self.trials: list[AllocationTrial] = []
        self.missed: list[Distance] = []

    def run(self) -> list[Allocation]:
        """The allocations tried that hold the floors, smallest first."""
        menus = self._menus()
        if all(len(offers) == 1 for offers in menus.values()):
            return []
        limit = _FIRST_DIVERGENCE
        tried: dict[tuple[tuple[str, Offer], ...], AllocationTrial] = {}
        for _ in range(_LOOKS):
            allocation = least_cost(menus, limit)
            key = tuple(allocation.items())
            if key not in tried and len(tried) == _TRIALS:
                break
            if key not in tried:
                with self.context.progress.step(f"trial {len(tried) + 1} of at most {_TRIALS}"):
                    tried[key] = self._try(limit, allocation)
            trial = replace(tried[key], limit=limit)
            self.trials.append(trial)
            if _SLACK <= trial.use <= 1:
                break
            limit = self._next_limit(limit)
        good = [trial for trial in tried.values() if trial.use <= 1]
        return sorted((trial.allocation for trial in good), key=total_cost)

    def made(
        self, steps: Iterable[Pass], calibration: Calibration | None
    ) -> tuple[Model, list[PassResult]]:
        """A copy of the model after `steps`, fitted on the samples of `calibration`."""
        model, results = self.model.clone(), []
        context = replace(self.context, model=model, calibration=calibration)
        for step in steps:
            results.append(run_stages(step, model, context))
            if step.unrolled()[-1].trains:  # training moved what layers return
                context = replace(context, target=model.clone())
        return model, results

    def holds(self, model: Model) -> bool:
        """Whether what was made on all samples holds the floors on them, and on those held back."""
        every = self.context.calibration
        assert every is not None
        for samples in (self.held, every):
            with self.context.progress.step("judging what was made on all samples"):
                distance, drop = self._judged(model, samples)
            if self._use(distance, drop) > 1:
                self.missed.append(distance)
                return False
        return True

    def why_nothing(self) -> str:
        """Why there is no allocation, with the nearest miss."""
        if not self.trials:
            return "it has no layer whose input can be observed"
        what, count = "allocation", len({id(trial.distance) for trial in self.trials})
        nearest = min(self.trials, key=lambda trial: trial.use).distance
        if self.missed:
            what, count = "candidate made on all samples", len(self.missed)
            nearest = max(self.missed, key=lambda distance: distance.sqnr_db)
        figures = [f"an SQNR of {nearest.sqnr_db:.1f} dB"]
        if nearest.mean_cosine is not None:
            figures.insert(0, f"a mean cosine of {nearest.mean_cosine:.4f}")
        if nearest.mean_kl is not None:
            figures.insert(0, f"a divergence of {nearest.mean_kl:.4f} nats")
        if nearest.agreement is not None:
            figures.insert(0, f"an agreement of {nearest.agreement:.4f}")
        return f"no {what} held the floor: the best of {count} had {' and '.join(figures)}"

    def _menus(self) -> dict[str, tuple[Offer, ...]]:
        """The offers of each layer."""
        model = self.model.clone()
        context = replace(self.context, model=model, calibration=self.fitted)
        schedule = Schedule(sequential=False, aim=Target.CURRENT)
        problems = Problems(Rewriter(model.graph), context, self.options.layers, schedule)
        menus: dict[str, tuple[Offer, ...]] = {}
        for problem in problems:
            if not problem.has_data:  # no data say what an error costs, so the weight stays
                menus[problem.name] = (Offer(1.0, None, problem.layer.holder.nbytes, 0.0),)
                continue
            menus[problem.name] = offers_of(problem, context, packed=self.options.packed)
        return menus

    def _try(self, limit: float, allocation: Allocation) -> AllocationTrial:
        model, _ = self.made(self.explicit(allocation), self.fitted)
        distance, drop = self._judged(model, self.held)
        return AllocationTrial(limit, allocation, distance, self._use(distance, drop))

    def _judged(self, model: Model, samples: Calibration) -> tuple[Distance, float | None]:
        """The distance of a candidate on some samples; lost points of accuracy."""
        (distance,) = samples.distances(self.model, [model])
        drop = None
        if self.accuracy is not None and self.context.accuracy is not None:
            now = self.context.accuracy(model)
            drop = None if now is None else 100 * (self.accuracy - now)
        return distance, drop

    def _use(self, distance: Distance, drop: float | None) -> float:
        """The largest share of what a floor allows that is used up."""
        # the floors of the options stand in where the user's say nothing of these outputs, and hold
        # beside the default ones
        own = Floors(min_agreement=self.options.agreement)
        if distance.agreement is None:
            own = Floors(min_sqnr_db=self.options.sqnr_db)
        figures = tuple(distance.outputs.values())
        used = share_used(self.context.floors, figures, drop=drop)
        if used is None or self.context.floors.is_default:
            used = max(used or 0.0, share_used(own, figures) or 0.0)
        return used

    def _next_limit(self, limit: float) -> float:
        """The limit on the divergence at which, by the trials so far, `_AIM` would be used.

        The share used grows like a power of the divergence. Between a trial that held the floors
        and one that missed them the power is interpolated, else it is 1 / `_GROWTH`.
        """
        held = max((t for t in self.trials if t.use <= 1), key=lambda t: t.limit, default=None)
        missed = min((t for t in self.trials if t.use > 1), key=lambda t: t.limit, default=None)
        if held is None or missed is None:
            use = max(self.trials[-1].use, 1 / _STEP)
            return float(limit * min(_STEP, max(1 / _STEP, (_AIM / use) ** _GROWTH)))
        # both scales are logarithmic; the ends of the interval are kept out
        low, high, part = log(held.limit), log(missed.limit), 0.5
        if held.use > 0 and isfinite(missed.use):
            part = log(_AIM / held.use) / log(missed.use / held.use)
        return float(exp(low + (high - low) * min(0.9, max(0.1, part))))
