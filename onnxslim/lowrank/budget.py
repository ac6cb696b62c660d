"""How far each layer is split under a budget over the whole model, at the least output error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from onnxslim.lossy.budgets import Budget
from onnxslim.lossy.error_gain import sensitivity
from onnxslim.lossy.gate import Gate, Paying
from onnxslim.lossy.problems import Problem
from onnxslim.lossy.spend import least_error, of_least_cost, total_cost
from onnxslim.lowrank.candidates import Candidate, Fit, SplitCosts, candidates_for_budget
from onnxslim.lowrank.trials import Trials
from onnxslim.pipeline.passes import Context
from onnxslim.solvers.decompositions.base import Diverges

_DENSE: Final = ("svd", "channel", "spatial", "tucker2")
_CLEARLY: Final = 0.8  # work below this share of another's is clearly less
_TRIAL_ERROR: Final = 0.02  # relative error of the candidate by which sensitivity is measured


@dataclass(frozen=True)
class _Offer:
    """A split (None: the layer as it is), with its cost and its error in the model's output."""

    cost: float
    error: float
    paying: Paying[Candidate] | None


@dataclass(frozen=True)
class SplitBudget:
    """Spends a budget.

    Attributes:
        budget: of latency, macs or bytes; a share of what all layers take as they are.
        trials: of methods and ranks.
        gate: to what pays.
        context: of the pass.
    """

    budget: Budget
    trials: Trials
    gate: Gate
    context: Context

    def spread(
        self, problems: Iterable[Problem], decline: Callable[[Problem | None, str], None]
    ) -> Mapping[str, Paying[Candidate]]:
        """A split for each layer that is to be split, by name; all together keep the budget.

        Args:
            problems: the weights, none of them changed yet.
            decline: is told why a layer (None: the model as a whole) misses what was asked for.
        """
        menus: dict[str, list[_Offer]] = {}
        fixed = 0.0  # what layers take that no split makes cheaper
        for problem in problems:
            offers = self._offers(problem)
            if isinstance(offers, str):
                decline(problem, offers)
                fixed += self._fixed(problem)
            else:
                menus[problem.name] = offers
        if not menus:
            return {}
        # the first offer is the layer as it is
        whole = fixed + sum(offers[0].cost for offers in menus.values())
        limit = self.budget.amount * whole - fixed
        chosen = least_error(menus, limit)
        if total_cost(chosen) > limit:
            least = (fixed + total_cost(of_least_cost(menus))) / whole
            decline(
                None,
                f"the budget of {self.budget.amount:g} of {self.budget.kind} cannot be met: the "
                f"layers can go down to {least:.2g} of what they take",
            )
        found = {name: offer.paying for name, offer in chosen.items()}
        return {name: paying for name, paying in found.items() if paying is not None}

    def _fixed(self, problem: Problem) -> float:
        """What a layer takes as it is; 0 where that is not known."""
        costs = self.trials.costs(problem)
        return self._cost(costs, None) if self._is_known(costs) else 0.0

    def _is_known(self, costs: SplitCosts) -> bool:
        return self.budget.kind == "bytes" or costs.has_shapes

    def _offers(self, problem: Problem) -> list[_Offer] | str:
        """The layer as it is, and its splits that pay, with costs and errors."""
        methods = self.trials.methods(problem)
        if isinstance(methods, str):
            return methods
        costs = self.trials.costs(problem)
        if not self._is_known(costs):
            return "the size of its input is not known, so a split cannot be measured"
        candidates: list[Candidate] = []
        trial: tuple[Fit, Candidate] | None = None
        for method in methods:
            rank_range = self.trials.rank_range(problem, method)
            if method != "tucker2" and not rank_range.steps:
                continue
            fit = self.trials.fit_all(problem, rank_range)
            try:
                found = candidates_for_budget(fit, rank_range)
            except Diverges:
                continue
            candidates += found
            near = min(found, key=_from_trial_error, default=None)
            if near is not None and (
                trial is None or _from_trial_error(near) < _from_trial_error(trial[1])
            ):
                trial = (fit, near)
        if trial is None:
            return "no rank has fewer weights than the layer"
        paying = self.gate.paying(_promising(candidates, costs), costs)
        if isinstance(paying, str):
            return paying
        scale = self._sensitivity(problem, *trial)
        splits = [_Offer(self._cost(costs, p), scale * p.candidate.added, p) for p in paying]
        return [_Offer(self._cost(costs, None), 0.0, None), *splits]

    def _cost(self, costs: SplitCosts, paying: Paying[Candidate] | None) -> float:
        """What a split (None: the layer as it is) takes of the budget."""
        candidate = None if paying is None else paying.candidate
        if self.budget.kind == "bytes":
            return float(costs.nbytes(candidate))
        stopwatch = self.context.stopwatch
        if self.budget.kind == "macs" or stopwatch is None:
            return float(costs.macs(candidate) or 0)
        if candidate is not None and self.gate.for_bytes:  # its gain is not one of time
            self.gate.measured = True
            pairs = costs.timed([candidate])[0]
            return sum(pair.after.ms for pair in pairs)
        models = costs.models(None)
        assert models is not None
        self.gate.measured = True
        # the faster runs: layers are weighed against each other, timed at different moments
        base = sum(item.p10 for item in stopwatch.milliseconds(models))
        return base if paying is None else base / paying.gain

    def _sensitivity(self, problem: Problem, fit: Fit, candidate: Candidate) -> float:
        """Divergence of the model's output per relative error of the layer; 1 without data."""
        if not problem.has_data or self.context.model is None:
            return 1.0
        weight = fit.product(fit.factors(candidate.ranks))
        return max(sensitivity(self.context, problem, weight), 1e-12)


def _promising(candidates: list[Candidate], costs: SplitCosts) -> list[Candidate]:
    """The candidates worth timing: none that errs more than a dense one of clearly less work.

    Work says little about time between kinds of operators: only dense candidates rule others out.
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


def _from_trial_error(candidate: Candidate) -> float:
    return abs(candidate.added - _TRIAL_ERROR)
