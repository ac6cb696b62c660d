"""`SplitPass`: base of the passes that put several small operators in the place of a layer.

A pass says which operators it is for and which methods a layer may be split by; here is what they
share: the options that say how far a split may go, and that factors are fitted to the original
outputs on the present inputs. What is tried on a layer is `split_trials`'s, what pays
`split_gate`'s, budgets are `split_budget`'s, and the graph is rewritten by `split_graph`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layer_models import StaticShape
from onnxslim.analysis.layers import WeightLayer
from onnxslim.errors import RuntimeFailure, UsageError
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.budgeted_pass import (
    BudgetedPass,
    leaving_share_option,
    remaining_share_option,
)
from onnxslim.lossy.budgets import Budget
from onnxslim.lossy.layer_pass import LayerPass, error_words
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
from onnxslim.lowrank.gate import Gate, Paying
from onnxslim.lowrank.rewrite import PlannedSplit, replace_layer
from onnxslim.lowrank.trials import Trials, diverges, rank_of
from onnxslim.pipeline.options import at_least, interval, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Goal
from onnxslim.pipeline.replayable import replay_note
from onnxslim.pipeline.spelling import spell
from onnxslim.records import Fidelity, PassResult
from onnxslim.render.units import bytes_text
from onnxslim.solvers.decompositions.base import Diverges, Factors, Ranks
from onnxslim.solvers.decompositions.methods import METHODS
from onnxslim.solvers.metric import Metric

_PLANNED = re.compile(r"(?P<layer>.+)=(?P<method>[a-z0-9]+)/(?P<ranks>[1-9]\d*(x[1-9]\d*)?)")
_PLAIN: Final = ("svd", "channel")  # whose rank is that of the weight as a matrix
_NO_ERROR: Final = 1e-9  # below, the rank of the weight is looked at


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
class SplitPass(LayerPass, BudgetedPass):
    """Layers split into smaller operators, with the options that say how far."""

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    max_inputs: ClassVar[int | None] = MAX_INPUTS
    budgets: ClassVar[tuple[str, ...]] = ("latency", "macs", "bytes")
    alternatives: ClassVar[tuple[str, ...]] = ("rank", "ratio", *budgets, "plan")
    ops: ClassVar[frozenset[str]]

    rank: int | None = option(None, at_least(1), "rank of every layer")
    energy: float = option(
        0.99,
        interval(0, 1, open_left=True),
        "share of a layer's output energy that is kept at least, where nothing else is asked for",
    )
    ratio: float | None = leaving_share_option("share of the weights of every layer that goes")
    latency: float | None = remaining_share_option(
        "budget: milliseconds, as a share of what all layers take"
    )
    macs: float | None = remaining_share_option(
        "budget: multiply-accumulates, as a share of what all layers take"
    )
    bytes_: float | None = remaining_share_option(
        "budget: bytes of weights, as a share of what all layers take"
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
        if self.rank_selection == "budget" and self.budget is None:
            raise UsageError(
                f"Option `rank-selection` of `{self.name}` is budget, but there is none: give "
                "latency, macs or bytes."
            )

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
        for split in run.splits():
            replace_layer(rw, split)
        if run.done and run.gate.measured:
            again = spell(self.name, {"plan": tuple(run.done)})
            rw.note(rw.main.name, replay_note(again))
        return rw.result()


class _Run:
    """One run of a pass."""

    def __init__(self, rule: SplitPass, rw: Rewriter, context: Context) -> None:
        self.rule, self.rw, self.context = rule, rw, context
        share = 1.0 if rule.ratio is None else 1 - rule.ratio
        shapes = self._shapes()
        self.trials = Trials(rule.methods, context, rw.opset, shapes, share, rule.align)
        for_bytes = rule.goal == "bytes"
        if rule.goal == "auto":
            for_bytes = context.goal is Goal.BYTES
        self.gate = Gate(context.stopwatch, for_bytes)
        self.done: list[str] = []  # entries of a plan that would do the same

    def splits(self) -> list[PlannedSplit]:
        """All splits; until they are made, layers hold the products of their factors."""
        problems = self._problems(self.rule.schedule)
        chosen: Mapping[str, Paying] | None = None
        if self.rule.plan:
            chosen = self._planned(problems)
        elif self.rule.budget is not None:
            chosen = self._spread(self.rule.budget)
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
        problems = self.rule.problems(self.rw, self.context).scheduled(schedule)
        problems = problems.restricted(lambda shared: shared.layers[0].node.op in self.rule.ops)
        mine = {
            node_label(node)
            for graph in self.rw.graphs()
            for node in graph.nodes
            if node.op in self.rule.ops
        }
        self.rw.skips = {key: skip for key, skip in self.rw.skips.items() if skip.node in mine}
        return problems

    def _shapes(self) -> Mapping[str, StaticShape]:
        stopwatch, model = self.context.stopwatch, self.context.model
        if stopwatch is None or model is None or self.rule.plan:
            return {}
        try:
            return stopwatch.shapes(model)
        except RuntimeFailure:  # sizes that are known without a run still are
            return {}

    # ----------------------------------------------------------------- choosing

    def _choice(self, problem: Problem, chosen: Mapping[str, Paying] | None) -> Paying | str:
        """What to do to a layer, or why nothing."""
        methods = self.trials.methods(problem)
        if isinstance(methods, str):
            return methods
        if chosen is None:
            self.context.tell(f"{self.rule.name}: {problem.name}")
            return self._best(problem, methods)
        if problem.name in chosen:
            return chosen[problem.name]
        budget = self.rule.budget
        if budget is None:
            return "it is not in `plan`"
        label = node_label(problem.layer.node)
        for (name, _), skip in self.rw.skips.items():
            if name == label:  # said while offers were made
                return str(skip.why)
        return f"within the budget of {budget.kind} it is best left as it is"

    def _planned(self, problems: Problems) -> Mapping[str, Paying]:
        """The choices that `plan` spells."""
        chosen = {}
        for entry in self.rule.plan:
            match = _PLANNED.fullmatch(entry)
            assert match is not None
            ranks = tuple(int(rank) for rank in match["ranks"].split("x"))
            chosen[match["layer"]] = Paying(
                1.0, Candidate(match["method"], ranks, 0.0), "as planned"
            )
        names = {shared.layers[0].name for shared in problems.weights}
        for name in chosen:
            if name not in names:
                self._decline(None, f"there is no layer `{name}` for `plan`")
        return chosen

    def _spread(self, budget: Budget) -> Mapping[str, Paying]:
        """The choices that keep all layers together within the budget."""
        split_budget = SplitBudget(budget, self.trials, self.gate, self.context)

        def told() -> Iterator[Problem]:
            for problem in self._problems(self.rule.schedule.at_once()):
                self.context.tell(f"{self.rule.name}: what {problem.name} could be")
                yield problem

        return split_budget.spread(told(), self._decline)

    def _best(self, problem: Problem, methods: tuple[str, ...]) -> Paying | str:
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
        if self.rule.ratio is not None:
            return f"{method}: even the lowest rank leaves more than {1 - self.rule.ratio:g} of it"
        if self.rule.rank is None and self.rule.rank_selection == "energy":
            return f"{method}: no rank with fewer weights keeps {self.rule.energy:g} of the output"
        return f"{method}: that rank takes as many weights as the layer"

    def _exact(
        self, problem: Problem, methods: tuple[str, ...], costs: SplitCosts
    ) -> Paying | None:
        """A split at the rank that the weight has, where that is less than it could have."""
        method = methods[0]
        if self.rule.rank is not None or self.rule.ratio is not None or method not in _PLAIN:
            return None
        ladder = self.trials.ladder(problem, method)
        if not ladder.steps:
            return None
        if self.trials.fit_all(problem, ladder).error(ladder.steps[-1:]) > _NO_ERROR:
            return None
        rank = rank_of(problem)
        full = METHODS[method].exact_ranks(ladder.shape)[0]
        if rank >= full:
            return None
        ranks = (ladder.aligned(rank, full),)
        if ladder.weights(ranks) >= problem.layer.rows * problem.layer.columns:
            ranks = (rank,)
        best = self.gate.best([Candidate(method, ranks, 0.0)], costs)
        return None if isinstance(best, str) else best

    def _wished(self, problem: Problem, method: str) -> list[Candidate]:
        """What the options ask for, of one method.

        Raises:
            Diverges: the decomposition does not settle.
        """
        ladder = self.trials.ladder(problem, method)
        full = METHODS[method].exact_ranks(ladder.shape)
        if self.rule.rank is not None:
            ranks = tuple(min(self.rule.rank, most) for most in full)
            return [self.trials.fit(problem, method, max(ranks)).candidate(ranks)]
        fit = self.trials.fit_all(problem, ladder)
        if self.rule.ratio is not None:
            return _largest(fit, ladder)
        if self.rule.rank_selection == "vbmf":
            parts = zip(*(part.variational_ranks() for part in fit.parts), strict=True)
            sizes = zip(parts, full, strict=True)
            ranks = tuple(ladder.aligned(max(part), most) for part, most in sizes)
            return [fit.candidate(ranks)] if ladder.weights(ranks) < ladder.most_weights else []
        found = least_within(fit, ladder, 1 - self.rule.energy)
        return [fit.candidate(ranks) for ranks in found]

    # ----------------------------------------------------------------- solving

    def _solved(self, problem: Problem, choice: Paying) -> PlannedSplit:
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
        self.done.append(f"{problem.name}={candidate}")
        dtype = problem.layer.holder.dtype
        stored = tuple(np.ascontiguousarray(factor.astype(dtype)) for factor in factors)
        return PlannedSplit(problem.layers, candidate.method, stored, what, fidelity)


def _largest(fit: Fit, ladder: RankRange) -> list[Candidate]:
    """The best of what has few enough weights."""
    wished = ladder.pairs() if fit.method == "tucker2" else [(r,) for r in ladder.steps[-1:]]
    found = [fit.candidate(ranks) for ranks in wished]
    return sorted(found, key=lambda c: c.added)[:1]


def _plain(problem: Problem) -> Problem:
    """The weight itself as the target, measured by its own distance."""
    metrics = tuple(Metric(None, problem.layer.columns) for _ in problem.metrics)
    own = np.asarray(problem.weight, np.float64)
    return replace(problem, metrics=metrics, shifted=own, energy=None, irreducible_error=0.0)


__all__ = ["SplitPass"]
