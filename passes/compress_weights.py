"""Share zeros and values out between layers by what they do to the output, then prune and cluster.

Rewrite:
    Runs `prune-weights` and `cluster-weights` with a share of zeros and a size of table for each
    layer. The report spells them out as an explicit pipeline, which gives the same model without
    the search.

Why it is correct:
    It is not exact. For each layer the error of its output at so many zeros and values is estimated
    in closed form, and how much of such an error reaches the model's output is measured on samples
    held back. One price of a byte for all layers then gives the least error for the bytes. The
    price is found by trying: a candidate is made on four fifths of the samples and compared with
    the original on the others, until it is as small as the floor allows. The one found is made
    anew on all samples, and compared again; where it misses the floor now, the next larger one.

Declines when:
    1. There are no calibration samples: there is nothing to judge candidates by.
    2. No candidate holds the floor.

Fidelity:
    LOSSY, held to the user's floors; without any, to `agreement` or `sqnr`.

Reference:
    Shoham, Gersho (1988), efficient bit allocation for an arbitrary set of quantizers; Han, Mao,
    Dally, arXiv:1510.00149, whose layers were tuned by hand and retrained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from glob import escape
from math import exp, isfinite, log
from typing import ClassVar, Final

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.clone import adopt
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.allocation import Allocation, Menu, Offer, allocate_within, menu_of
from onnxslim.lossy.layer_pass import LayerPass
from onnxslim.lossy.problems import Problems, Schedule, Target
from onnxslim.passes.cluster_weights import ClusterWeights
from onnxslim.passes.prune_weights import PruneWeights
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.options import at_least, interval, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.records import Change, Fidelity, PassResult, Skip
from onnxslim.services.calibration import Calibration, Distance

_TRIALS: Final = 6
_FIRST_DIVERGENCE: Final = 1e-3
_SLACK: Final = 0.8  # a candidate is small enough when it uses this share of what is allowed
_AIM: Final = 0.9
_FINALS: Final = 3  # candidates that are made on all samples
_LOOKS: Final = 4 * _TRIALS  # at allocations, most of which may have been tried before
_STEP: Final = 16.0


@dataclass(frozen=True)
class CompressWeights(LayerPass):
    """Share zeros and values out between layers by what they do to the output, then compress."""

    name: ClassVar[str] = "compress-weights"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    agreement: float = option(
        0.998, interval(0, 1), "share of top-1 answers to keep, where no floor is given"
    )
    sqnr: float = option(
        20.0, at_least(0), "dB to keep where outputs are no class scores and no floor is given"
    )
    count: str = option(
        "packed",
        one_of("packed", "onnx"),
        "bytes that are to be few: of the packed file, or of the .onnx, where zeros bring nothing",
    )

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse to work without data, and idle patterns.

        Raises:
            NotApplicable: there are no calibration samples, or a pattern matches no layer.
        """
        if context.calibration is None or context.model is None:
            raise NotApplicable("it needs calibration samples: give --calib")
        super().requires(graph, context)

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Search, then prune and cluster as found."""
        search = _Search(self, context)
        for allocation in search.run()[:_FINALS]:
            steps = self.explicit(allocation)
            model, results = search.made(steps, context.calibration)
            changes = [change for result in results for change in result.changes]
            skips = [skip for result in results for skip in result.skips]
            if not changes:
                nothing = "no change that holds the floor makes it smaller"
                skips.append(Skip(graph.name, search.why_nothing() if search.missed else nothing))
                return PassResult((), tuple(skips))
            if search.holds(model):
                adopt(graph, model.graph)
                plan = Change(graph.name, f"chose {','.join(map(str, steps))}")
                return PassResult((plan, *changes), tuple(skips), Fidelity.LOSSY)
        return PassResult(skips=(Skip(graph.name, search.why_nothing()),))

    def explicit(self, found: Allocation) -> tuple[PruneWeights, ClusterWeights]:
        """The two passes that make an allocation."""
        shares, values, kept = [], [], []
        for name, offer in found.chosen.items():
            literal = escape(name)
            if offer.values is None:
                kept.append(literal)
                continue
            values.append(f"{literal}={offer.values}")
            if offer.keep < 1:
                shares.append(f"{literal}={min(1 - offer.keep, 0.9999):.4f}")
        plain = (self.only, (*self.skip, *kept), self.aim, self.sequential)
        return (
            PruneWeights(*plain, ratio=0.0, ratio_of=tuple(shares)),
            ClusterWeights(*plain, values_of=tuple(values)),
        )


@dataclass(frozen=True)
class _Trial:
    limit: float  # on the divergence, for which the allocation was made
    allocation: Allocation
    distance: Distance
    drop: float | None  # points of accuracy
    use: float  # of what the floors allow; above 1 they are missed


class _Search:
    """Finds the smallest allocation that holds the floors."""

    def __init__(self, rewrite: CompressWeights, context: Context) -> None:
        assert context.calibration is not None
        assert context.model is not None
        self.rewrite, self.context = rewrite, context
        self.model: Model = context.model
        self.fitted, self.held = context.calibration.halves()
        self.accuracy = None
        if context.accuracy is not None and context.floors.max_drop is not None:
            self.accuracy = context.accuracy(self.model)
        self.trials: list[_Trial] = []
        self.missed: list[Distance] = []  # of candidates made on all samples

    def run(self) -> list[Allocation]:
        """The allocations tried that hold the floors, smallest first."""
        menus = self._menus()
        if all(len(menu.offers) == 1 for menu in menus):
            return []
        limit = _FIRST_DIVERGENCE
        tried: dict[tuple[tuple[str, Offer], ...], _Trial] = {}
        for _ in range(_LOOKS):
            allocation = allocate_within(menus, limit)
            key = tuple(allocation.chosen.items())
            if key not in tried and len(tried) == _TRIALS:
                break
            if key not in tried:
                self._say(f"trial {len(tried) + 1} of at most {_TRIALS}")
                tried[key] = self._try(limit, allocation)
            trial = replace(tried[key], limit=limit)
            self.trials.append(trial)
            if _SLACK <= trial.use <= 1:
                break
            limit = self._next(limit)
        good = [trial for trial in tried.values() if trial.use <= 1]
        return [trial.allocation for trial in sorted(good, key=lambda t: t.allocation.size)]

    def made(
        self, steps: Iterable[LayerPass], calibration: Calibration | None
    ) -> tuple[Model, list[PassResult]]:
        """A copy of the model after `steps`, fitted on the samples of `calibration`."""
        model = self.model.clone()
        context = replace(self.context, model=model, calibration=calibration)
        return model, [step.run(model.graph, context) for step in steps]

    def holds(self, model: Model) -> bool:
        """Whether a candidate made on all samples still holds the floors."""
        self._say("judging what was made on all samples")
        distance, drop = self._judged(model)
        use = self._use(distance, drop)
        if use > 1:
            self.missed.append(distance)
        return use <= 1

    def why_nothing(self) -> str:
        """Why there is no allocation, with the nearest miss."""
        if not self.trials:
            return "it has no layer whose input can be observed"
        what, count = "allocation", len({id(trial.distance) for trial in self.trials})
        nearest = min(self.trials, key=lambda trial: trial.use).distance
        if self.missed:
            what, count = "candidate made on all samples", len(self.missed)
            nearest = max(self.missed, key=lambda distance: distance.sqnr_db)
        return (
            f"no {what} held the floor: the best of {count} had an agreement of "
            f"{nearest.agreement} and an SQNR of {nearest.sqnr_db:.1f} dB"
        )

    def _say(self, text: str) -> None:
        self.context.tell(f"{self.rewrite.name}: {text}")

    def _menus(self) -> list[Menu]:
        model = self.model.clone()
        context = replace(self.context, model=model, calibration=self.fitted)
        schedule = Schedule(sequential=False, aim=Target.CURRENT)
        problems = Problems(Rewriter(model.graph), context, self.rewrite.selection, schedule)
        menus = []
        for number, problem in enumerate(problems, 1):
            if not problem.has_data:  # nothing says what it is worth, so it stays
                stays = Offer(1.0, None, problem.layer.holder.nbytes, 0.0)
                menus.append(Menu(problem.name, (stays,), 0.0))
                continue
            self._say(f"what layer {number} of {len(problems.weights)} is worth")
            menus.append(menu_of(problem, context, packed=self.rewrite.count == "packed"))
        return menus

    def _try(self, limit: float, allocation: Allocation) -> _Trial:
        model, _ = self.made(self.rewrite.explicit(allocation), self.fitted)
        distance, drop = self._judged(model)
        return _Trial(limit, allocation, distance, drop, self._use(distance, drop))

    def _judged(self, model: Model) -> tuple[Distance, float | None]:
        """How far a candidate is from the model on the samples held back; points of accuracy."""
        (distance,) = self.held.distances(self.model, [model])
        drop = None
        if self.accuracy is not None and self.context.accuracy is not None:
            now = self.context.accuracy(model)
            drop = None if now is None else 100 * (self.accuracy - now)
        return distance, drop

    def _use(self, distance: Distance, drop: float | None) -> float:
        """The largest share of what a floor allows that is used up."""
        uses = _uses(self.context.floors, distance, drop)
        if not uses:  # no floor, or none that says anything of these outputs
            own = Floors(min_agreement=self.rewrite.agreement)
            if distance.agreement is None:
                own = Floors(min_sqnr_db=self.rewrite.sqnr)
            uses = _uses(own, distance, drop)
        return max(uses)

    def _next(self, limit: float) -> float:
        """The next limit on divergence, where by the trials so far just enough is used.

        What is used grows like a power of the divergence: between a trial that held and one that
        missed that power is interpolated, else it is taken to be 2/3, as seen on small networks.
        """
        held = max((t for t in self.trials if t.use <= 1), key=_spent, default=None)
        missed = min((t for t in self.trials if t.use > 1), key=_spent, default=None)
        if held is None or missed is None:
            use = max(self.trials[-1].use, 1 / _STEP)
            return float(limit * min(_STEP, max(1 / _STEP, (_AIM / use) ** 1.5)))
        low, high, part = log(_spent(held)), log(_spent(missed)), 0.5
        if held.use > 0 and isfinite(missed.use):
            part = log(_AIM / held.use) / log(missed.use / held.use)
        return float(exp(low + (high - low) * min(0.9, max(0.1, part))))


def _spent(trial: _Trial) -> float:
    return trial.limit


def _uses(floors: Floors, distance: Distance, drop: float | None) -> list[float]:
    """The shares of what each floor allows that are used up; () where none says anything."""
    uses = []
    if floors.min_agreement is not None:
        found = (distance.agreement, distance.expected_agreement)
        allowed = 1 - floors.min_agreement
        uses += [_share(1 - share, allowed) for share in found if share is not None]
    if floors.min_sqnr_db is not None:
        uses.append(10 ** ((floors.min_sqnr_db - distance.sqnr_db) / 10))
    if floors.max_drop is not None and drop is not None:
        uses.append(_share(drop, floors.max_drop))
    return uses


def _share(used: float, allowed: float) -> float:
    if used <= 0:
        return 0.0
    return used / allowed if allowed > 0 else float("inf")
