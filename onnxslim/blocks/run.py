"""One run of `prune-blocks`: remove the least harmful branch, refit what reads the sum, repeat.

Owns: the order of these steps, and the report. Not here: the options (see `passes.prune_blocks`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.branches import Branch, next_layers, residual_branches
from onnxslim.blocks.meter import BranchMeter, branch_macs
from onnxslim.blocks.ranking import Ranking, drop_term
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.budgets import Budget
from onnxslim.lossy.normalization_refit import refit_normalizations
from onnxslim.lossy.problems import Problems, assign
from onnxslim.lossy.refit_trial import confirmed_refits
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context
from onnxslim.records import Change, Fidelity, PassResult
from onnxslim.services.calibration import Calibration

_WITHOUT_DATA: Final = (
    "no calibration samples: branches were chosen by the size of their weights and no layer was "
    "refitted to what is left, which costs most of the accuracy that could be kept; give --calib"
)


_REFITTED: Final = "refitted to the original model: samples held back come nearer to it"


@dataclass(frozen=True)
class BlockOptions:
    """The options of `prune-blocks`.

    Attributes:
        budget: how far to go; a ratio is of the branches that may leave.
        reconstruct: whether the layers that read a sum are refitted, where there are samples.
        branches: which of them may leave, by their labels.
    """

    budget: Budget
    reconstruct: bool
    branches: LayerFilter


class BlockPruning:
    """A graph that loses branches.

    Attributes:
        untimed: the budget that repeats what a budget of latency decided; None for other budgets.
    """

    def __init__(self, rewriter: Rewriter, context: Context, options: BlockOptions) -> None:
        self.rw, self.context, self.options = rewriter, context, options
        self.untimed: Budget | None = None
        self._totals: list[str] = []  # names of the tensors that hold sums without their branches

    def run(self) -> PassResult:
        """Remove one branch after the other until the budget is met."""
        graph = self.rw.main
        branches = self._branches(graph)
        meter = BranchMeter(self.options.budget, graph, self.context, branches)
        why_not = self._out_of_reach(meter)
        if why_not is not None:
            self.rw.decline(why_not)
            return PassResult(skips=self.rw.result().skips)
        ranking, changes = Ranking(meter, self.context), list[Change]()
        while branches and not meter.is_met(graph, self.context.model, len(changes)):
            branch, harm = ranking.least_harmful(branches)
            changes.append(self._remove(branch, harm))
            branches = self._branches(graph)  # each removal changes what the others add
        for branch in branches:
            self.rw.skip(branch.label, _why_kept(meter, is_any_gone=bool(changes)))
        if meter.budget.kind == "latency" and changes:
            self.untimed = meter.untimed(graph, len(changes))
        changes += [Change(name, _REFITTED) for name in self._refitted()]
        if self.context.calibration is None and changes:
            self.rw.skip(graph.name, _WITHOUT_DATA)
        skips = self.rw.result().skips
        return PassResult(tuple(changes), skips, Fidelity.LOSSY if changes else None)

    def _branches(self, graph: gs.Graph) -> list[Branch]:
        return [
            branch
            for branch in residual_branches(graph)
            if self.options.branches.accepts(branch.label)
        ]

    def _out_of_reach(self, meter: BranchMeter) -> str | None:
        """Why the budget cannot be met, judged by a copy that has lost all branches."""
        if meter.budget.kind == "ratio" or self.context.model is None:
            return None
        bare = self.context.model.clone()
        rw, lost = Rewriter(bare.graph), 0
        while branches := self._branches(bare.graph):
            drop_term(rw, branches[0].sum, branches[0].term)
            rw.result()
            lost += 1
        if meter.is_met(bare.graph, bare, lost):
            return None
        return (
            f"a budget of {meter.budget} is out of reach even without all "
            f"{lost} branches that may leave; ask for more, or use prune-channels"
        )

    def _remove(self, branch: Branch, harm: str) -> Change:
        macs = branch_macs(branch)
        saved = f", {macs:,} multiply-accumulates" if macs else ""
        what = f"removed `{branch.label}` with {len(branch.layers)} weight layers{saved}; {harm}"
        total = drop_term(self.rw, branch.sum, branch.term)
        self.rw.result()  # removes the nodes that nothing needs any more
        self._totals.append(total.name)
        return Change(total.name, what)

    def _refitted(self) -> list[str]:
        """Refit what is left to the original model; the labels of what that brings nearer to it."""
        calibration, model = self.context.calibration, self.context.model
        reference, target = self.context.reference, self.context.target
        if not (self._totals and self.options.reconstruct):
            return []
        if calibration is None or model is None or reference is None or target is None:
            return []
        tried, held = calibration.halves()
        refits = (
            lambda: refit_normalizations(self.rw, model, target, tried),
            lambda: self._refit_readers(tried),
        )
        return confirmed_refits(self.rw, model, reference, held, refits)

    def _refit_readers(self, calibration: Calibration) -> list[str]:
        """Fit the layers that read the sums to what they returned in the original model."""
        graph = self.rw.main
        made = (*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs))
        totals = [tensor for tensor in made if tensor.name in self._totals]
        names = {layer.name for total in totals for layer in next_layers(graph, total)}
        problems = Problems(self.rw, replace(self.context, calibration=calibration)).restricted(
            lambda shared: all(layer.name in names for layer in shared.layers)
        )
        refitted = []
        for problem in problems:
            if problem.has_data:
                assign(self.rw, problem, problem.target)
                refitted.append(node_label(problem.layer.node))
        return refitted


def _why_kept(meter: BranchMeter, *, is_any_gone: bool) -> str:
    if is_any_gone:
        return "it moves the output more, for what it saves, than what was removed"
    return f"a budget of {meter.budget} is met without removing a branch"
