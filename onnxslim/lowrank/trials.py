"""The decompositions that are tried on a layer: methods, ranks, factors and their costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxslim.analysis.layer_models import StaticShape
from onnxslim.analysis.layers import WeightLayer
from onnxslim.lossy.problems import Problem
from onnxslim.lowrank.candidates import Fit, RankRange, SplitCosts, kernel_shape
from onnxslim.pipeline.passes import Context
from onnxslim.solvers.low_rank import numerical_rank


@dataclass
class Trials:
    """Tries methods on one layer after another.

    Attributes:
        methods_of: the methods that a layer may be split by, or why it may not be.
        context: of the pass.
        opset: of the graph.
        shapes: of tensors in a run, where one was possible.
        share: of the weights that may be left at most.
        align: ranks are multiples of this, or powers of two below.
    """

    methods_of: Callable[[WeightLayer], tuple[str, ...] | str]
    context: Context
    opset: int
    shapes: Mapping[str, StaticShape]
    share: float
    align: int
    _fits: dict[str, Fit] = field(default_factory=dict, init=False)

    def methods(self, problem: Problem) -> tuple[str, ...] | str:
        """The methods that all layers of a weight can be split by, or why it stays whole."""
        reason = _objection(problem)
        if reason is not None:
            return reason
        found: dict[str, None] = {}
        for number, layer in enumerate(problem.layers):
            methods = self.methods_of(layer)
            if isinstance(methods, str):
                return methods
            found = {m: None for m in methods if number == 0 or m in found}
        if not found:
            return "the layers that share its weight can be split by no common method"
        return tuple(found)

    def rank_range(self, problem: Problem, method: str) -> RankRange:
        """The ranks that leave few enough weights."""
        layer = problem.layer
        weights = layer.rows * layer.columns
        return RankRange(kernel_shape(layer), method, self.align, int(weights * self.share))

    def fit(self, problem: Problem, method: str, most: int | None) -> Fit:
        """A weight decomposed up to rank `most` (None: any); kept until the next weight comes."""
        self._fits = {key: fit for key, fit in self._fits.items() if fit.problem is problem}
        known = self._fits.get(method)
        if known is None or (known.most is not None and (most is None or most > known.most)):
            known = self._fits[method] = Fit(problem, method, most, self.context.seed)
        return known

    def fit_all(self, problem: Problem, rank_range: RankRange) -> Fit:
        """A weight decomposed up to the highest rank in the range."""
        if rank_range.method == "tucker2":
            return self.fit(problem, rank_range.method, None)
        return self.fit(problem, rank_range.method, rank_range.steps[-1] if rank_range.steps else 1)

    def costs(self, problem: Problem) -> SplitCosts:
        """The costs of the layer and of its splits."""
        return SplitCosts(problem, self.shapes, self.context.stopwatch, self.opset)


def rank_of(problem: Problem) -> int:
    """The rank that the weight itself has, of its groups the highest."""
    return max(map(numerical_rank, problem.weight))


def diverges(method: str) -> str:
    """Why a method was given up."""
    return f"{method}: its terms grow without bound and cancel each other"


def _objection(problem: Problem) -> str | None:
    """Why a weight cannot be split; None: it can."""
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
