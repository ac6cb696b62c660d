"""How far the removal of branches has to go: a budget, and what has been reached of it.

Owns: what a branch brings, and when a budget is met. Not here: what a graph takes (see
`lossy.budgets`); which branch goes next (see `ranking`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.branches import Branch
from onnxslim.graph.counts import node_macs, with_bodies
from onnxslim.graph.ir import Constant
from onnxslim.io.model import Model
from onnxslim.lossy.budgets import Budget, BudgetMeter
from onnxslim.pipeline.passes import Context

_ALMOST_ALL: Final = 0.999999  # the largest ratio that the option takes


class BranchMeter:
    """Measures a graph that loses branches against a budget.

    Args:
        budget: a ratio is of the branches that may leave.
        graph: as it is before any branch leaves.
        context: with a stopwatch and the model of `graph`, if the budget is one of latency.
        branches: of `graph`, that may leave.
    """

    def __init__(
        self, budget: Budget, graph: gs.Graph, context: Context, branches: Sequence[Branch]
    ) -> None:
        self.budget = budget
        self._removable = _removable(branches)
        self._has_macs = all(node_macs(node) is not None for node in with_bodies(graph.nodes))
        self._macs = BudgetMeter.of("macs", graph)
        is_timed = budget.kind == "latency" and context.model is not None
        original = context.model.clone() if is_timed and context.model is not None else None
        self._meter = BudgetMeter.of(budget.kind, graph, original, context.stopwatch)

    def gain(self, branch: Branch) -> float:
        """What the budget gains by the removal of a branch, in its unit; 1 if that is not known."""
        if self.budget.kind == "bytes":
            return float(_own_bytes(branch) or 1)
        if self.budget.kind == "ratio" or not self._has_macs:
            return 1.0
        return float(branch_macs(branch) or 1)

    def is_met(self, graph: gs.Graph, model: Model | None, removed: int) -> bool:
        """Whether `graph`, that of `model`, has lost enough with `removed` branches."""
        if self.budget.kind == "ratio":
            return removed >= round(self.budget.amount * self._removable)
        if self.budget.kind == "latency" and not removed:
            return False
        return self._meter.taken(graph, model) <= self.budget.amount * self._meter.whole

    def untimed(self, graph: gs.Graph, removed: int) -> Budget:
        """A budget that `graph`, without `removed` branches, meets whatever is timed."""
        if not self._has_macs:
            return Budget("ratio", min(removed / self._removable, _ALMOST_ALL))
        # rounded up: at least what is left now, and less than was left one branch before
        return Budget("macs", ceil(1e6 * self._macs.taken(graph) / self._macs.whole) / 1e6)


def _removable(branches: Sequence[Branch]) -> int:
    """How many branches can leave: one term of every sum stays."""
    by_sum = Counter(branch.sum for branch in branches)
    return sum(min(count, len(node.inputs) - 1) for node, count in by_sum.items())


def branch_macs(branch: Branch) -> int:
    """Multiply-accumulates of a branch; nodes of unknown size count as nothing."""
    return sum(node_macs(node) or 0 for node in with_bodies(branch.nodes))


def _own_bytes(branch: Branch) -> int:
    """Bytes of the constants that only this branch uses."""
    own = set(with_bodies(branch.nodes))
    used = dict.fromkeys(tensor for node in own for tensor in node.inputs)
    values = [value for node in own for value in node.attrs.values()]
    held = [t for t in used if isinstance(t, Constant) and own.issuperset(t.outputs)]
    return sum(item.nbytes for item in (*held, *values) if isinstance(item, Constant))
