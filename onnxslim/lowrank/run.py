"""One run of `factorize-conv` or `factorize-dense`: choose splits, fit factors, rewrite the graph.

    problems -> choice (`trials`, `gate`; `budget`; or a plan) -> factors -> pieces (`rewrite`)

With samples, a first pass over them finds the layers for which a split pays while no other is
split. These are solved one after another; until the end each holds the product of its factors, so
that later layers are fitted to the inputs that the split model produces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from onnxslim.analysis.layer_models import StaticShape
from onnxslim.analysis.layers import WeightLayer
from onnxslim.errors import RuntimeFailure
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.budgets import Budget
from onnxslim.lossy.gate import Gate, Paying
from onnxslim.lossy.layer_pass import error_words
from onnxslim.lossy.problems import MAX_INPUTS, Problem, Problems, Schedule, assign
from onnxslim.lowrank.budget import SplitBudget
from onnxslim.lowrank.candidates import (
    Candidate,
    Fit,
    RankRange,
    SplitCosts,
    kernel_shape,
    least_within,
)
from onnxslim.lowrank.rewrite import PlannedSplit, replace_layer
from onnxslim.lowrank.trials import Trials, diverges, rank_of
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity
from onnxslim.render.units import bytes_text
from onnxslim.solvers.decompositions.base import Diverges, Factors, Ranks
from onnxslim.solvers.decompositions.methods import METHODS
from onnxslim.solvers.metric import Metric

_PLAIN: Final = ("svd", "channel")  # methods whose rank is that of the weight as a matrix
_NO_ERROR: Final = 1e-9  # a relative error below it may mean that the weight has no higher rank


@dataclass(frozen=True)
class SplitOptions:
    """The options of a pass that splits layers, with what `auto` means filled in.

    Attributes:
        ops: the types of operators that may be split.
        methods: the methods that a layer may be split by, or why it may not be split.
        layers: those that may be split, by name.
        schedule: how moments are taken.
        rank: of every layer; None: another option says.
        energy: the share of a layer's output energy to keep, where nothing else is asked for.
        ratio: the share of the weights of every layer that goes; None: another option says.
        budget: over all layers; None: another option says.
        rank_selection: `vbmf`, or `energy`.
        for_bytes: whether a split must save bytes, else time.
        align: ranks are multiples of it, or powers of two below.
        plan: exactly these splits, by the name of the layer; {}: another option says.
    """

    ops: frozenset[str]
    methods: Callable[[WeightLayer], tuple[str, ...] | str]
    layers: LayerFilter
    schedule: Schedule
    rank: int | None
    energy: float
    ratio: float | None
    budget: Budget | None
    rank_selection: str
    for_bytes: bool
    align: int
    plan: Mapping[str, Candidate]


class Splitting:
    """A graph whose layers are being split.

    Attributes:
        plan: the entries of `plan` that repeat what was done.
    """

    def __init__(self, rewriter: Rewriter, context: Context, options: SplitOptions) -> None:
        self.rw, self.context, self.options = rewriter, context, options
        share = 1.0 if options.ratio is None else 1 - options.ratio
        shapes = self._shapes()
        self.trials = Trials(options.methods, context, rewriter.opset, shapes, share, options.align)
        self.gate = Gate(context.stopwatch, options.for_bytes)
        self.plan: list[str] = []

    @property
    def is_timed(self) -> bool:
        """Whether anything was decided by timing."""
        return self.gate.measured

    def run(self) -> None:
        """Choose how to split, solve one layer after another, then rewrite the graph."""
        for split in self.splits():
            replace_layer(self.rw, split)

    def splits(self) -> list[PlannedSplit]:
        """All splits, solved; each layer holds the product of its factors meanwhile."""
        problems = self._problems(self.options.schedule)
        chosen: Mapping[str, Paying[Candidate]] | None = None
        if self.options.plan:
            chosen = self._planned(problems)
        elif self.options.budget is not None:
            chosen = self._spread(self.options.budget)
        elif self.options.schedule.sequential and self.context.calibration is not None:
            problems = self._promising(problems)
        found: list[PlannedSplit] = []
        for problem in problems:
            choice = self._choice(problem, chosen)
            if isinstance(choice, str):
                self._decline(problem, choice)
                continue
            try:
                found.append(self._solved(problem, choice))
            except Diverges:
                self._decline(problem, diverges(choice.candidate.method))
        return found

    def _decline(self, problem: Problem | None, why: str) -> None:
        self.rw.skip(self.rw.main.name if problem is None else node_label(problem.layer.node), why)

    def _problems(self, schedule: Schedule) -> Problems:
        """The weights that this pass is for."""
        every = Problems(self.rw, self.context, self.options.layers, schedule, MAX_INPUTS)
        problems = every.restricted(
            lambda shared: all(
                layer.is_linear and layer.node.op in self.options.ops for layer in shared.layers
            )
        )
        mine = {
            node_label(node)
            for graph in self.rw.graphs()
            for node in graph.nodes
            if node.op in self.options.ops
        }
        self.rw.skips = {key: skip for key, skip in self.rw.skips.items() if skip.node in mine}
        return problems

    def _shapes(self) -> Mapping[str, StaticShape]:
        stopwatch, model = self.context.stopwatch, self.context.model
        if stopwatch is None or model is None or self.options.plan:
            return {}
        try:
            return stopwatch.shapes(model)
        except RuntimeFailure:  # sizes that are known without a run still are
            return {}

    # ----------------------------------------------------------------- choosing

    def _choice(
        self, problem: Problem, chosen: Mapping[str, Paying[Candidate]] | None
    ) -> Paying[Candidate] | str:
        """The split of a layer, or why it stays whole."""
        methods = self.trials.methods(problem)
        if isinstance(methods, str):
            return methods
        if chosen is None:
            return self._best(problem, methods)
        if problem.name in chosen:
            return chosen[problem.name]
        budget = self.options.budget
        if budget is None:
            return "it is not in `plan`"
        label = node_label(problem.layer.node)
        for (name, _), skip in self.rw.skips.items():
            if name == label:  # said while offers were made
                return str(skip.why)
        return f"within the budget of {budget.kind} it is best left as it is"

    def _promising(self, problems: Problems) -> Problems:
        """The layers for which a split pays while no other layer is split.

        One pass over the samples tells, where going from layer to layer takes one for each depth.
        """
        names = set()
        for problem in problems.scheduled(self.options.schedule.at_once()):
            choice = self._choice(problem, None)
            if isinstance(choice, str):
                self._decline(problem, choice)
            else:
                names.add(problem.name)
        return problems.restricted(lambda shared: shared.layers[0].name in names)

    def _planned(self, problems: Problems) -> Mapping[str, Paying[Candidate]]:
        """The choices that `plan` spells."""
        chosen = {}
        for shared in problems.weights:
            own = self.context.names.all(layer.name for layer in shared.layers)
            planned = (self.options.plan[name] for name in own if name in self.options.plan)
            candidate = next(planned, None)
            if candidate is not None:
                chosen[shared.layers[0].name] = Paying(1.0, candidate, "as planned")
        return chosen

    def _spread(self, budget: Budget) -> Mapping[str, Paying[Candidate]]:
        """The choices that keep all layers together within the budget."""
        split_budget = SplitBudget(budget, self.trials, self.gate, self.context)
        problems = self._problems(self.options.schedule.at_once())
        return split_budget.spread(iter(problems), self._decline)

    def _best(self, problem: Problem, methods: tuple[str, ...]) -> Paying[Candidate] | str:
        """The split that gains most among those that keep enough of the output."""
        costs = self.trials.costs(problem)
        exact = self._exact(problem, methods, costs)
        if exact is not None:
            return exact
        candidates, reasons = [], []
        for method in methods:
            try:
                found = self._wished(problem, method)
            except Diverges:
                reasons.append(diverges(method))
                continue
            if not found:
                reasons.append(self._why_none(method))
            candidates += found
        if not candidates:
            return "; ".join(reasons)
        return self.gate.best(candidates, costs)

    def _why_none(self, method: str) -> str:
        if self.options.ratio is not None:
            return (
                f"{method}: even the lowest rank leaves more than {1 - self.options.ratio:g} of it"
            )
        if self.options.rank is None and self.options.rank_selection == "energy":
            return (
                f"{method}: no rank with fewer weights keeps {self.options.energy:g} of the output"
            )
        return f"{method}: that rank takes as many weights as the layer"

    def _exact(
        self, problem: Problem, methods: tuple[str, ...], costs: SplitCosts
    ) -> Paying[Candidate] | None:
        """A split at the rank that the weight has, where that is less than it could have."""
        method = methods[0]
        if self.options.rank is not None or self.options.ratio is not None or method not in _PLAIN:
            return None
        rank_range = self.trials.rank_range(problem, method)
        if not rank_range.steps:
            return None
        if self.trials.fit_all(problem, rank_range).error(rank_range.steps[-1:]) > _NO_ERROR:
            return None
        rank = rank_of(problem)
        full = METHODS[method].exact_ranks(rank_range.shape)[0]
        if rank >= full:
            return None
        ranks = (rank_range.aligned(rank, full),)
        if rank_range.weights(ranks) >= problem.layer.rows * problem.layer.columns:
            ranks = (rank,)
        best = self.gate.best([Candidate(method, ranks, 0.0)], costs)
        return None if isinstance(best, str) else best

    def _wished(self, problem: Problem, method: str) -> list[Candidate]:
        """The candidates of one method that the options ask for.

        Raises:
            Diverges: the decomposition does not settle.
        """
        rank_range = self.trials.rank_range(problem, method)
        full = METHODS[method].exact_ranks(rank_range.shape)
        if self.options.rank is not None:
            ranks = tuple(min(self.options.rank, most) for most in full)
            return [self.trials.fit(problem, method, max(ranks)).candidate(ranks)]
        fit = self.trials.fit_all(problem, rank_range)
        if self.options.ratio is not None:
            return _largest(fit, rank_range)
        if self.options.rank_selection == "vbmf":
            parts = zip(*(part.variational_ranks() for part in fit.parts), strict=True)
            sizes = zip(parts, full, strict=True)
            ranks = tuple(rank_range.aligned(max(part), most) for part, most in sizes)
            is_less = rank_range.weights(ranks) < rank_range.most_weights
            return [fit.candidate(ranks)] if is_less else []
        found = least_within(fit, rank_range, 1 - self.options.energy)
        return [fit.candidate(ranks) for ranks in found]

    # ----------------------------------------------------------------- solving

    def _solved(self, problem: Problem, choice: Paying[Candidate]) -> PlannedSplit:
        """Factors for a layer; the layer gets their product, for what follows to be measured on.

        Raises:
            Diverges: the decomposition does not settle.
        """
        candidate = choice.candidate
        full = METHODS[candidate.method].exact_ranks(kernel_shape(problem.layer))
        ranks: Ranks = tuple(
            min(rank, most) for rank, most in zip(candidate.ranks, full, strict=True)
        )
        exact = self._is_exact(problem, candidate.method, ranks)
        source = _plain(problem) if exact else problem
        fit = self.trials.fit(source, candidate.method, max(ranks))
        factors = fit.factors(ranks)
        before = problem.layer.holder.nbytes
        costs = self.trials.costs(problem)
        sizes = f"{bytes_text(before)} to {bytes_text(costs.nbytes(candidate))}"
        at = "x".join(map(str, ranks))
        what = f"split by {candidate.method} at rank {at}; {choice.words}; {sizes}; "
        if exact:
            what += f"its weight has rank {rank_of(problem)}"
            return self._kept(problem, candidate, factors, what, Fidelity.CLOSE)
        weight = fit.product(factors)
        what += error_words(problem, problem.relative_error(weight))
        assign(self.rw, problem, weight)
        return self._kept(problem, candidate, factors, what, Fidelity.LOSSY)

    def _is_exact(self, problem: Problem, method: str, ranks: Ranks) -> bool:
        """Whether the weight itself has no higher rank than the split."""
        if method not in _PLAIN:
            return False
        if self.trials.fit(problem, method, max(ranks)).error(ranks) > _NO_ERROR:
            return False
        return rank_of(problem) <= ranks[0]

    def _kept(
        self,
        problem: Problem,
        candidate: Candidate,
        factors: Factors,
        what: str,
        fidelity: Fidelity,
    ) -> PlannedSplit:
        self.plan.append(f"{problem.name}={candidate}")
        dtype = problem.layer.holder.dtype
        stored = tuple(np.ascontiguousarray(factor.astype(dtype)) for factor in factors)
        return PlannedSplit(problem.layers, candidate.method, stored, what, fidelity)


def _largest(fit: Fit, rank_range: RankRange) -> list[Candidate]:
    """The candidate of least error among those with few enough weights."""
    wished = (
        rank_range.pairs() if fit.method == "tucker2" else [(r,) for r in rank_range.steps[-1:]]
    )
    found = [fit.candidate(ranks) for ranks in wished]
    return sorted(found, key=lambda c: c.added)[:1]


def _plain(problem: Problem) -> Problem:
    """The weight itself as the target, measured by its own distance."""
    metrics = tuple(Metric(None, problem.layer.columns) for _ in problem.metrics)
    own = np.asarray(problem.weight, np.float64)
    return replace(problem, metrics=metrics, shifted=own, energy=None, irreducible_error=0.0)
