"""`SplitPass`: base of the passes that put several small operators in the place of a layer.

A pass says which operators it is for and which methods a layer may be split by; here is what they
share: how far a split may go (a rank, an error, a budget over the whole model), that it must be
measured to pay, that factors are fitted to the original outputs on the present inputs, and how the
graph is rewritten.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layer_models import Shape
from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.operands import is_present
from onnxslim.analysis.splits import pieces_of
from onnxslim.contract import Context, Fidelity, PassResult
from onnxslim.errors import RuntimeFailure, UsageError
from onnxslim.goal import Goal
from onnxslim.ir import node_label
from onnxslim.objective.budgets import cheapest, spend, total_cost
from onnxslim.objective.layer_pass import LayerPass, error_words
from onnxslim.objective.low_rank import numerical_rank
from onnxslim.objective.problems import WIDEST, Problem, Problems, Schedule, assign
from onnxslim.objective.sensitivity import sensitivity
from onnxslim.objective.solver import Metric
from onnxslim.objective.splits import (
    Candidate,
    Costs,
    Fit,
    Ladder,
    candidates_for_budget,
    kernel_shape,
    least_within,
)
from onnxslim.objective.tensor_decompositions import METHODS, Diverges, Factors, Ranks
from onnxslim.options import at_least, interval, one_of, option
from onnxslim.report import LatencyPair
from onnxslim.rewrite import Rewriter
from onnxslim.spelling import spell
from onnxslim.units import bytes_text, count_text, ms_text

_PLANNED = re.compile(r"(?P<layer>.+)=(?P<method>[a-z0-9]+)/(?P<ranks>[1-9]\d*(x[1-9]\d*)?)")
_WAYS: Final = ("rank", "ratio", "latency", "macs", "bytes", "plan")
_BUDGETS: Final = ("latency", "macs", "bytes")
_PLAIN: Final = ("svd", "channel")  # whose rank is that of the weight as a matrix
_DENSE: Final = ("svd", "channel", "spatial", "tucker2")
_CLEARLY: Final = 0.8  # of the work
_NO_ERROR: Final = 1e-9  # below, the rank of the weight is looked at
_TRIAL_ERROR: Final = 0.02  # of the candidate by which sensitivity is measured


@dataclass(frozen=True)
class _Planned:
    """Constraint on the entries of `plan`."""

    def accepts(self, value: str) -> bool:
        match = _PLANNED.fullmatch(value)
        if match is None or match["method"] not in METHODS:
            return False
        return ("x" in match["ranks"]) == (match["method"] == "tucker2")

    def describe(self) -> str:
        return "of the form LAYER=METHOD/RANK, for tucker2 LAYER=tucker2/OUTPUTSxINPUTS"

    def invalid(self) -> Iterator[str]:
        yield from ("layer", "layer=8", "layer=channel/0", "layer=tucker2/8", "layer=other/8")


@dataclass(frozen=True)
class _Offer:
    """A candidate, or the layer as it is, with what it takes of a budget."""

    cost: float
    error: float
    candidate: Candidate | None
    words: str = ""


@dataclass(frozen=True)
class _Choice:
    """What is to be done to a layer."""

    candidate: Candidate
    words: str


@dataclass
class _Waiting:
    """A split that is to be made once all layers are solved."""

    problem: Problem
    method: str
    factors: Factors
    what: str
    fidelity: Fidelity


@dataclass(frozen=True)
class SplitPass(LayerPass):
    """Layers split into smaller operators, with the options that say how far."""

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    widest: ClassVar[int | None] = WIDEST
    ops: ClassVar[frozenset[str]]

    rank: int | None = option(None, at_least(1), "rank of every layer")
    energy: float = option(
        0.99,
        interval(0, 1, open_left=True),
        "share of a layer's output energy that is kept at least, where nothing else is asked for",
    )
    ratio: float | None = option(
        None, interval(0, 1, open_right=True), "share of the weights of every layer that goes"
    )
    latency: float | None = option(
        None,
        interval(0, 1, open_left=True),
        "budget: milliseconds, as a share of what all layers take",
    )
    macs: float | None = option(
        None,
        interval(0, 1, open_left=True),
        "budget: multiply-accumulates, as a share of what all layers take",
    )
    bytes_: float | None = option(
        None,
        interval(0, 1, open_left=True),
        "budget: bytes of weights, as a share of what all layers take",
    )
    rank_selection: str = option(
        "energy",
        one_of("energy", "vbmf", "budget"),
        "how ranks are chosen where none is given; budget is what giving a budget means",
    )
    data_aware: bool = option(
        default=True, help="with calibration samples: least error of outputs, else of weights"
    )
    goal: str = option(
        "auto",
        one_of("auto", "latency", "bytes"),
        "what a split must make less, as measured; auto: bytes with `--goal bytes`, else latency",
    )
    align: int = option(
        16, at_least(1), "ranks are multiples of this, or powers of two below; 1: any rank"
    )
    plan: tuple[str, ...] = option(
        (), _Planned(), "exactly these splits, without measuring; reports spell it"
    )

    def __post_init__(self) -> None:
        """Check every option, and that they do not contradict each other.

        Raises:
            UsageError: two ways to choose ranks at once, or a budget that is not given.
        """
        super().__post_init__()
        self.check_at_most_one(*_WAYS)
        if self.rank_selection == "budget" and self.budget is None:
            raise UsageError(
                f"Option `rank-selection` of `{self.name}` is budget, but there is none: give "
                "latency, macs or bytes."
            )

    @property
    def budget(self) -> str | None:
        """The name of the budget that is given."""
        return next(iter(self.given(*_BUDGETS)), None)

    # ----------------------------------------------------------------- of a subclass

    @abstractmethod
    def methods(self, layer: WeightLayer) -> tuple[str, ...] | str:
        """The methods that a layer may be split by, or why it may not be."""

    # ----------------------------------------------------------------- the run

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Choose how to split, solve one layer after another, then rewrite the graph."""
        rw = Rewriter(graph)
        if not self.data_aware:
            context = replace(context, calibration=None)
        run = _Run(self, rw, context)
        for waiting in run.solve():
            _rewrite(rw, waiting)
        if run.done and run.measured:
            again = spell(self.name, {"plan": tuple(run.done)})
            rw.note(rw.main.name, f"chosen by timing; without timing the same is {again}")
        return rw.result()


class _Run:
    """One run of a pass."""

    def __init__(self, rule: SplitPass, rw: Rewriter, context: Context) -> None:
        self.rule, self.rw, self.context = rule, rw, context
        self.shapes = self._shapes()
        self.done: list[str] = []  # entries of a plan that would do the same
        self.measured = False
        self.fits: dict[str, Fit] = {}

    def solve(self) -> list[_Waiting]:
        """All splits; until they are made, layers hold the products of their factors."""
        problems = self.problems(self.rule.schedule)
        chosen: Mapping[str, _Choice] | None = None
        if self.rule.plan:
            chosen = self._planned(problems)
        elif self.rule.budget is not None:
            chosen = self._spread()
        waiting: list[_Waiting] = []
        for problem in problems:
            choice = self._choice(problem, chosen)
            if isinstance(choice, str):
                self.rw.skip(node_label(problem.layer.node), choice)
                continue
            try:
                waiting.append(self._solved(problem, choice))
            except Diverges:
                self.rw.skip(node_label(problem.layer.node), _diverges(choice.candidate.method))
        return waiting

    def problems(self, schedule: Schedule) -> Problems:
        """The weights that this pass is for."""
        problems = replace(self.rule.problems(self.rw, self.context), schedule=schedule)
        problems.units = [u for u in problems.units if u.layers[0].node.op in self.rule.ops]
        mine = {
            node_label(node)
            for graph in self.rw.graphs()
            for node in graph.nodes
            if node.op in self.rule.ops
        }
        self.rw.skips = {key: skip for key, skip in self.rw.skips.items() if skip.node in mine}
        return problems

    def _shapes(self) -> Mapping[str, Shape]:
        stopwatch, model = self.context.stopwatch, self.context.model
        if stopwatch is None or model is None or self.rule.plan:
            return {}
        try:
            return stopwatch.shapes(model)
        except RuntimeFailure:  # sizes that are known without a run still are
            return {}

    # ----------------------------------------------------------------- choosing

    def _choice(self, problem: Problem, chosen: Mapping[str, _Choice] | None) -> _Choice | str:
        """What to do to a layer, or why nothing."""
        reason = _objection(problem)
        if reason is not None:
            return reason
        methods = self._methods(problem)
        if isinstance(methods, str):
            return methods
        if chosen is None:
            self.context.tell(f"{self.rule.name}: {problem.name}")
            return self._best(problem, methods)
        if problem.name in chosen:
            return chosen[problem.name]
        if self.rule.plan:
            return "it is not in `plan`"
        known = self.rw.skips  # said while offers were made
        label = node_label(problem.layer.node)
        if any(name == label for name, _ in known):
            return next(skip.why for (name, _), skip in known.items() if name == label)
        return f"within the budget of {self.rule.budget} it is best left as it is"

    def _methods(self, problem: Problem) -> tuple[str, ...] | str:
        found: dict[str, None] = {}
        for number, layer in enumerate(problem.layers):
            methods = self.rule.methods(layer)
            if isinstance(methods, str):
                return methods
            found = {m: None for m in methods if number == 0 or m in found}
        if not found:
            return "the layers that share its weight can be split by no common method"
        return tuple(found)

    def _best(self, problem: Problem, methods: tuple[str, ...]) -> _Choice | str:
        """The split that gains most among those that keep enough of the output."""
        costs = self._costs(problem)
        exact = self._exact(problem, methods, costs)
        if exact is not None:
            return exact
        candidates, reasons = [], []
        for method in methods:
            ladder = self._ladder(problem, method)
            try:
                found = self._wished(problem, method, ladder)
            except Diverges:
                reasons.append(_diverges(method))
                continue
            if not found:
                reasons.append(self._why_none(method))
            candidates += found
        if not candidates:
            return "; ".join(reasons)
        return self._gated(candidates, costs)

    def _why_none(self, method: str) -> str:
        if self.rule.ratio is not None:
            return f"{method}: even the lowest rank leaves more than {1 - self.rule.ratio:g} of it"
        if self.rule.rank is None and self.rule.rank_selection == "energy":
            return f"{method}: no rank with fewer weights keeps {self.rule.energy:g} of the output"
        return f"{method}: that rank takes as many weights as the layer"

    def _exact(self, problem: Problem, methods: tuple[str, ...], costs: Costs) -> _Choice | None:
        """A split at the rank that the weight has, where that is less than it could have."""
        method = methods[0]
        if self.rule.rank is not None or self.rule.ratio is not None or method not in _PLAIN:
            return None
        ladder = self._ladder(problem, method)
        if (
            not ladder.steps
            or self._fit(problem, method, _most(ladder)).error(ladder.steps[-1:]) > _NO_ERROR
        ):
            return None
        rank = _rank_of(problem)
        full = METHODS[method].full(ladder.shape)[0]
        if rank >= full:
            return None
        ranks = (ladder.aligned(rank, full),)
        if ladder.weights(ranks) >= problem.layer.rows * problem.layer.columns:
            ranks = (rank,)
        gated = self._gated([Candidate(method, ranks, 0.0)], costs)
        return None if isinstance(gated, str) else gated

    def _ladder(self, problem: Problem, method: str) -> Ladder:
        layer = problem.layer
        weights = layer.rows * layer.columns
        share = 1.0 if self.rule.ratio is None else 1 - self.rule.ratio
        return Ladder(kernel_shape(layer), method, self.rule.align, int(weights * share))

    def _wished(self, problem: Problem, method: str, ladder: Ladder) -> list[Candidate]:
        """What the options ask for, of one method.

        Raises:
            Diverges: the decomposition does not settle.
        """
        full = METHODS[method].full(ladder.shape)
        if self.rule.rank is not None:
            ranks = tuple(min(self.rule.rank, most) for most in full)
            return [self._fit(problem, method, max(ranks)).candidate(ranks)]
        fit = self._fit(problem, method, _most(ladder))
        if self.rule.ratio is not None:
            return self._largest(fit, ladder)
        if self.rule.rank_selection == "vbmf":
            parts = zip(*(part.variational() for part in fit.parts), strict=True)
            sizes = zip(parts, full, strict=True)
            ranks = tuple(ladder.aligned(max(part), most) for part, most in sizes)
            return [fit.candidate(ranks)] if ladder.weights(ranks) < ladder.most_weights else []
        found = least_within(fit, ladder, 1 - self.rule.energy)
        return [fit.candidate(ranks) for ranks in found]

    def _largest(self, fit: Fit, ladder: Ladder) -> list[Candidate]:
        """The best of what has few enough weights."""
        wished = ladder.pairs() if fit.method == "tucker2" else [(r,) for r in ladder.steps[-1:]]
        found = [fit.candidate(ranks) for ranks in wished]
        return sorted(found, key=lambda c: c.added)[:1]

    def _fit(self, problem: Problem, method: str, most: int | None) -> Fit:
        """A method on a weight; of the last weight it is remembered."""
        self.fits = {key: fit for key, fit in self.fits.items() if fit.problem is problem}
        known = self.fits.get(method)
        if known is None or (known.most is not None and (most is None or most > known.most)):
            known = self.fits[method] = Fit(problem, method, most, self.context.seed)
        return known

    def _costs(self, problem: Problem) -> Costs:
        return Costs(problem, self.shapes, self.context.stopwatch, self.rw.opset)

    # ----------------------------------------------------------------- what pays

    @property
    def is_for_bytes(self) -> bool:
        """Whether bytes are to become less, rather than latency."""
        if self.rule.goal == "auto":
            return self.context.goal is Goal.BYTES
        return self.rule.goal == "bytes"

    def _gated(self, candidates: list[Candidate], costs: Costs) -> _Choice | str:
        """The candidate that gains most, or why none does."""
        paying = self._paying(candidates, costs)
        if isinstance(paying, str):
            return paying
        gain, candidate, words = max(paying, key=lambda item: (item[0], -item[1].added))
        assert gain > 1
        return _Choice(candidate, words)

    def _paying(
        self, candidates: list[Candidate], costs: Costs
    ) -> list[tuple[float, Candidate, str]] | str:
        """Gain, candidate and words of all that pay, or why none does."""
        if self.is_for_bytes:
            return _by_size(candidates, costs)
        if not costs.has_shapes:
            return "the size of its input is not known, so a split cannot be measured"
        if self.context.stopwatch is None:
            return _by_macs(candidates, costs)
        self.measured = True
        found, best = [], ""
        top = 0.0
        for candidate, pairs in zip(candidates, costs.timed(candidates), strict=True):
            ratio = sum(p.before.median for p in pairs) / sum(
                p.before.median / p.ratio for p in pairs
            )
            words = _pair_words(pairs, ratio)
            if all(pair.is_faster for pair in pairs):
                found.append((ratio, candidate, words))
            if ratio > top:
                top, best = ratio, f"{candidate} is not: {words}"
        return found or f"no split is faster as measured: the best, {best}"

    # ----------------------------------------------------------------- budgets

    def _planned(self, problems: Problems) -> dict[str, _Choice]:
        """The choices that `plan` spells."""
        chosen = {}
        for entry in self.rule.plan:
            match = _PLANNED.fullmatch(entry)
            assert match is not None
            ranks = tuple(int(rank) for rank in match["ranks"].split("x"))
            chosen[match["layer"]] = _Choice(Candidate(match["method"], ranks, 0.0), "as planned")
        names = {unit.layers[0].name for unit in problems.units}
        for name in chosen:
            if name not in names:
                self.rw.skip(self.rw.main.name, f"there is no layer `{name}` for `plan`")
        return chosen

    def _spread(self) -> dict[str, _Choice]:
        """What each layer does so that all together stay within the budget."""
        kind = self.rule.budget
        assert kind is not None
        menus: dict[str, list[_Offer]] = {}
        fixed = 0.0  # what layers take that no split makes cheaper
        for problem in self.problems(self.rule.schedule.at_once()):
            self.context.tell(f"{self.rule.name}: what {problem.name} could be")
            offers = self._offers(problem, kind)
            if isinstance(offers, str):
                self.rw.skip(node_label(problem.layer.node), offers)
                fixed += self._fixed(problem, kind)
            else:
                menus[problem.name] = offers
        if not menus:
            return {}
        # the first offer is the layer as it is
        whole = fixed + sum(offers[0].cost for offers in menus.values())
        limit = float(getattr(self.rule, "bytes_" if kind == "bytes" else kind)) * whole - fixed
        chosen = spend(menus, limit)
        reached = total_cost(chosen)
        if reached > limit:
            self.rw.skip(
                self.rw.main.name,
                f"the budget of {getattr(self.rule, 'bytes_' if kind == 'bytes' else kind):g} of "
                f"{kind} cannot be met: the layers can go down to "
                f"{(fixed + total_cost(cheapest(menus))) / whole:.2g} of what they take",
            )
        return {
            name: _Choice(offer.candidate, offer.words)
            for name, offer in chosen.items()
            if offer.candidate is not None
        }

    def _fixed(self, problem: Problem, kind: str) -> float:
        """What a layer takes as it is; 0 where that is not known."""
        costs = self._costs(problem)
        if kind != "bytes" and not costs.has_shapes:
            return 0.0
        return self._cost(kind, costs, None, 1.0)

    def _offers(self, problem: Problem, kind: str) -> list[_Offer] | str:
        """The layer as it is, and its splits that pay, with costs and errors."""
        reason = _objection(problem)
        methods = reason or self._methods(problem)
        if isinstance(methods, str):
            return methods
        costs = self._costs(problem)
        if kind != "bytes" and not costs.has_shapes:
            return "the size of its input is not known, so a split cannot be measured"
        candidates: list[Candidate] = []
        trial: tuple[Fit, Candidate] | None = None
        for method in methods:
            ladder = self._ladder(problem, method)
            if method != "tucker2" and not ladder.steps:
                continue
            fit = self._fit(problem, method, _most(ladder))
            try:
                found = candidates_for_budget(fit, ladder)
            except Diverges:
                continue
            candidates += found
            near = min(found, key=lambda c: abs(c.added - _TRIAL_ERROR), default=None)
            if near is not None and (trial is None or _is_nearer(near, trial[1])):
                trial = (fit, near)
        if trial is None:
            return "no rank has fewer weights than the layer"
        paying = self._paying(_promising(candidates, costs), costs)
        if isinstance(paying, str):
            return paying
        scale = self._sensitivity(problem, *trial)
        base = self._cost(kind, costs, None, 1.0)
        return [
            _Offer(base, 0.0, None),
            *(
                _Offer(self._cost(kind, costs, c, gain), scale * c.added, c, words)
                for gain, c, words in paying
            ),
        ]

    def _cost(self, kind: str, costs: Costs, candidate: Candidate | None, gain: float) -> float:
        """What a candidate (None: the layer as it is) takes of a budget."""
        if kind == "bytes":
            return float(costs.nbytes(candidate))
        if kind == "macs" or self.context.stopwatch is None:
            return float(costs.macs(candidate) or 0)
        models = costs.models(None)
        assert models is not None
        # the faster runs: layers are weighed against each other, timed at different moments
        base = sum(item.p10 for item in self.context.stopwatch.milliseconds(models))
        if not self.is_for_bytes:
            return base / gain
        if candidate is None:
            return base
        pairs = costs.timed([candidate])[0]
        return sum(pair.before.median / pair.ratio for pair in pairs)

    def _sensitivity(self, problem: Problem, fit: Fit, candidate: Candidate) -> float:
        """What a relative error of the layer does to the model's output; 1 without data."""
        if not problem.has_data or self.context.model is None:
            return 1.0
        weight = fit.product(fit.factors(candidate.ranks))
        return max(sensitivity(self.context, problem, weight), 1e-12)

    # ----------------------------------------------------------------- solving

    def _solved(self, problem: Problem, choice: _Choice) -> _Waiting:
        """Factors for a layer; the layer gets their product, for what follows to be measured on.

        Raises:
            Diverges: the decomposition does not settle.
        """
        candidate = choice.candidate
        full = METHODS[candidate.method].full(kernel_shape(problem.layer))
        ranks: Ranks = tuple(
            min(rank, most) for rank, most in zip(candidate.ranks, full, strict=True)
        )
        exact = self._is_exact(problem, candidate.method, ranks)
        source = _plain(problem) if exact else problem
        fit = self._fit(source, candidate.method, max(ranks))
        factors = fit.factors(ranks)
        before = problem.layer.holder.nbytes
        costs = self._costs(problem)
        sizes = f"{bytes_text(before)} to {bytes_text(costs.nbytes(candidate))}"
        at = "x".join(map(str, ranks))
        what = f"split by {candidate.method} at rank {at}; {choice.words}; {sizes}; "
        if exact:
            what += f"its weight has rank {_rank_of(problem)}"
            return self._kept(problem, candidate, factors, what, Fidelity.CLOSE)
        weight = fit.product(factors)
        what += error_words(problem, problem.relative_error(weight))
        assign(self.rw, problem, weight)
        return self._kept(problem, candidate, factors, what, Fidelity.LOSSY)

    def _is_exact(self, problem: Problem, method: str, ranks: Ranks) -> bool:
        """Whether the weight itself has no higher rank than the split."""
        if method not in _PLAIN:
            return False
        if self._fit(problem, method, max(ranks)).error(ranks) > _NO_ERROR:
            return False
        return _rank_of(problem) <= ranks[0]

    def _kept(
        self,
        problem: Problem,
        candidate: Candidate,
        factors: Factors,
        what: str,
        fidelity: Fidelity,
    ) -> _Waiting:
        self.done.append(f"{problem.name}={candidate}")
        dtype = problem.layer.holder.dtype
        stored = tuple(np.ascontiguousarray(factor.astype(dtype)) for factor in factors)
        return _Waiting(problem, candidate.method, stored, what, fidelity)


# ---------------------------------------------------------------------------- inside


def _promising(candidates: list[Candidate], costs: Costs) -> list[Candidate]:
    """Those left out that lose more than another one and take clearly more work: a timing saved.

    Work says little of time between kinds of operators: only dense ones leave others out.
    """
    work = {candidate: costs.macs(candidate) or 0 for candidate in candidates}
    dense = [candidate for candidate in candidates if candidate.method in _DENSE]
    return [
        candidate
        for candidate in candidates
        if not any(
            work[other] < _CLEARLY * work[candidate] and other.added <= candidate.added
            for other in dense
        )
    ]


def _plain(problem: Problem) -> Problem:
    """The weight itself as the target, measured by its own distance."""
    metrics = tuple(Metric(None, problem.layer.columns) for _ in problem.metrics)
    own = np.asarray(problem.weight, np.float64)
    return replace(problem, metrics=metrics, shifted=own, energy=None, rest=0.0)


def _rank_of(problem: Problem) -> int:
    return max(map(numerical_rank, problem.weight))


def _most(ladder: Ladder) -> int | None:
    """The highest rank that will be asked for; None: any."""
    if ladder.method == "tucker2":
        return None
    return ladder.steps[-1] if ladder.steps else 1


def _is_nearer(candidate: Candidate, other: Candidate) -> bool:
    return abs(candidate.added - _TRIAL_ERROR) < abs(other.added - _TRIAL_ERROR)


def _objection(problem: Problem) -> str | None:
    """What of a weight rules a split out, in words."""
    layer = problem.layer
    known = {each.name for each in problem.layers}
    others = sorted({other for each in problem.layers for other in each.shared} - known)
    if others:
        return f"its weight is also used by `{others[0]}`, which needs it whole"
    if min(layer.rows, layer.columns) < 2:
        return (
            f"a group has {layer.rows} output{'s' if layer.rows > 1 else ''} of {layer.columns} "
            f"input{'s' if layer.columns > 1 else ''}: there is no lower rank"
        )
    weight = problem.weight
    if not np.isfinite(np.asarray(weight, np.float64)).all():
        return "it has values that are not finite"
    if not weight.any():
        return "its weight is zero"
    return None


def _diverges(method: str) -> str:
    return f"{method}: its terms grow without bound and cancel each other"


def _by_size(candidates: list[Candidate], costs: Costs) -> list[tuple[float, Candidate, str]] | str:
    before = costs.nbytes(None)
    found = []
    for candidate in candidates:
        after = costs.nbytes(candidate)
        if after < before:
            found.append((before / after, candidate, f"{before / after:.2f}x smaller"))
    return found or "no split takes fewer bytes"


def _by_macs(candidates: list[Candidate], costs: Costs) -> list[tuple[float, Candidate, str]] | str:
    before = costs.macs(None)
    assert before is not None
    found = []
    least = None
    for candidate in candidates:
        after = costs.macs(candidate) or 0
        least = after if least is None else min(least, after)
        if 0 < after < before:
            text = f"{count_text(before)} to {count_text(after)} multiply-accumulates, not timed"
            found.append((before / after, candidate, text))
    return found or (
        f"no split takes fewer multiply-accumulates: {count_text(before)} now, "
        f"{count_text(least)} at best (not timed)"
    )


def _pair_words(pairs: tuple[LatencyPair, ...], ratio: float) -> str:
    before = sum(pair.before.median for pair in pairs)
    low = min(pair.low for pair in pairs)
    high = max(pair.high for pair in pairs)
    return f"{ms_text(before)} to {ms_text(before / ratio)} ({ratio:.2f}x, {low:.2f} to {high:.2f})"


def _rewrite(rw: Rewriter, waiting: _Waiting) -> None:
    """Put the pieces in the place of every layer that uses the weight."""
    stored: dict[int, gs.Tensor] = {}
    for layer in waiting.problem.layers:
        _replace(rw, layer, waiting, stored)


def _replace(
    rw: Rewriter, layer: WeightLayer, waiting: _Waiting, stored: dict[int, gs.Tensor]
) -> None:
    node = layer.node
    label = node_label(node)
    pieces = pieces_of(layer, waiting.method, waiting.factors, rw.opset)
    tensors: dict[str, gs.Tensor] = {"x": layer.data_tensor}
    for number, piece in enumerate(pieces):
        inputs: list[gs.Tensor] = []
        for place, item in enumerate(piece.inputs):
            if isinstance(item, str):
                inputs.append(tensors[item])
                continue
            key = number * 8 + place  # layers that share the weight share its factors
            if key not in stored or stored[key].values.shape != item.shape:
                stored[key] = rw.constant(np.ascontiguousarray(item), f"{label}_factor{number}")
            inputs.append(stored[key])
        if piece is not pieces[-1]:
            (made,) = rw.insert(
                node,
                piece.op,
                inputs,
                piece.attrs,
                name=f"{label}_part{number}",
                dtype=node.outputs[0].dtype,
            )
            tensors[piece.output] = made
            continue
        if layer.bias is not None and is_present(node, layer.bias):
            inputs.append(node.inputs[layer.bias])
        attrs = dict(piece.attrs)
        rw.update(
            node, waiting.what, op=piece.op, inputs=inputs, attrs=attrs, fidelity=waiting.fidelity
        )


__all__ = ["SplitPass"]
