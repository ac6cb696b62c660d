"""Remove whole residual branches, those whose absence moves the output least.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[1, 2] x) => (float[1, 1] y)
        <float[2, 2] a = {1, 0, 0, 1}, float[2, 2] b = {4, 0, 0, 4}, float[2, 1] c = {1, 1}> {
        f = MatMul (x, a)
        s = Add (x, f)
        g = MatMul (s, b)
        t = Add (s, g)
        y = MatMul (t, c)
    }
    ```
    becomes, with half of the branches removed,
    ```
    <opset_import: ["" : 17]>
    after (float[1, 2] x) => (float[1, 1] y)
        <float[2, 2] b = {4, 0, 0, 4}, float[2, 1] c = {1, 1}> {
        g = MatMul (x, b)
        t = Add (x, g)
        y = MatMul (t, c)
    }
    ```
    A branch is a term of an Add or a Sum with weights that nothing else needs; the other terms
    stay. The next one to go is chosen anew after each removal.

Why it is correct:
    It is not exact. With calibration data each branch is left out in turn, and what that does to
    the outputs is measured on samples held back; the one with the least harm for what it saves
    goes. The layers that read the sum are then refitted in closed form to what they returned in the
    original model. Without data the norms of the branches' weights say which one goes.

Declines when:
    1. No other term of the sum has its shape, or a term is constant.
    2. The branch has no weights of its own.
    3. `only` and `skip` leave the branch out.

Fidelity:
    LOSSY.

Reference:
    Wen et al., arXiv:1608.03665 (depth-wise sparsity of residual networks); Huang et al.,
    arXiv:1603.09382 (residual networks bear the loss of branches); Hassibi, Stork (1993) for the
    refit. We differ: nothing is trained, branches are ranked by measurement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.branches import Branch, next_layers, residual_branches
from onnxslim.errors import NotApplicable
from onnxslim.graph.counts import constants_of, node_macs
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.budgeted_pass import DEFAULT_RATIO, BudgetedPass, known_macs
from onnxslim.lossy.problems import Problems, assign
from onnxslim.pipeline.layer_filter import FilteredPass, only_option, skip_option
from onnxslim.pipeline.options import OptionValue, interval, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.replayable import replay_note
from onnxslim.records import Change, Fidelity, PassResult

_ALMOST_ALL = 0.999999
_WITHOUT_DATA = (
    "no calibration samples: branches were chosen by the size of their weights and no layer was "
    "refitted to what is left, which costs most of the accuracy that could be kept; give --calib"
)


@dataclass(frozen=True)
class PruneBlocks(BudgetedPass, FilteredPass):
    """Remove whole residual branches, those whose absence moves the output least."""

    name: ClassVar[str] = "prune-blocks"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"ratio": (0.99,)}

    ratio: float | None = option(
        None,
        interval(0, 1, open_right=True),
        f"share of the branches that leaves; {DEFAULT_RATIO} where no budget is given",
    )
    bytes_: float | None = option(
        None, interval(0, 1, open_left=True), "share of the weights' bytes that may remain"
    )
    reconstruct: bool = option(
        default=True, help="refit the layers that read the sum; needs calibration samples"
    )
    only: tuple[str, ...] = only_option("branches to remove")
    skip: tuple[str, ...] = skip_option("branches")

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse a budget that cannot be measured, and graphs without branches.

        Raises:
            NotApplicable: saying what to give.
        """
        super().requires(graph, context)
        labels = [branch.label for branch in residual_branches(graph)]
        if not labels:
            raise NotApplicable("no residual branch with weights of its own was found")
        self.check_patterns(labels)
        if self.macs is not None:
            known_macs(graph.nodes)

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The branches."""
        return tuple(dict.fromkeys(branch.label for branch in residual_branches(graph)))

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Remove one branch after the other until the budget is met."""
        rw = Rewriter(graph)
        branches = self._branches(graph)
        meter = _Meter(*self.budget(), graph, context, _removable(branches))
        why_not = self._out_of_reach(meter, context)
        if why_not is not None:
            rw.skip(graph.name, why_not)
            return PassResult(skips=rw.result().skips)
        changes: list[Change] = []
        while branches and not meter.is_met(graph, context.model, len(changes)):
            branch, words = _least(branches, meter, context)
            changes.append(self._remove(rw, branch, words, context))
            branches = self._branches(graph)
        for branch in branches:
            rw.skip(branch.label, _why_kept(meter, bool(changes)))
        if meter.kind == "latency" and changes:
            again = self._without_timing(meter, graph, len(changes))
            changes.append(Change(changes[0].node, replay_note(again)))
        if context.calibration is None and changes:
            rw.skip(graph.name, _WITHOUT_DATA)
        result = rw.result()
        return PassResult(tuple(changes), result.skips, Fidelity.LOSSY if changes else None)

    def _out_of_reach(self, meter: _Meter, context: Context) -> str | None:
        """Why the budget cannot be met, judged by a copy that has lost all branches."""
        if meter.kind == "ratio" or context.model is None:
            return None
        bare = context.model.clone()
        rw, lost = Rewriter(bare.graph), 0
        while branches := self._branches(bare.graph):
            drop(rw, branches[0].sum, branches[0].term)
            rw.result()
            lost += 1
        if meter.is_met(bare.graph, bare, lost):
            return None
        return (
            f"a budget of {meter.kind}={meter.amount:g} is out of reach even without all "
            f"{lost} branches that may leave; ask for more, or use prune-channels"
        )

    def _without_timing(self, meter: _Meter, graph: gs.Graph, removed: int) -> PruneBlocks:
        """The options that repeat what was decided by measuring time."""
        if not meter.has_macs:
            share = min(removed / meter.removable, _ALMOST_ALL)
            return replace(self, latency=None, ratio=share)
        # between what is left now and what was left one branch before
        share = ceil(1e6 * _all_macs(graph) / meter.macs) / 1e6
        return replace(self, latency=None, macs=share)

    def _branches(self, graph: gs.Graph) -> list[Branch]:
        found = residual_branches(graph)
        return [branch for branch in found if self.selection.accepts(branch.label)]

    def _remove(self, rw: Rewriter, branch: Branch, words: str, context: Context) -> Change:
        macs = _macs(branch)
        saved = f", {macs:,} multiply-accumulates" if macs else ""
        what = f"removed `{branch.label}` with {len(branch.layers)} weight layers{saved}; {words}"
        kept = drop(rw, branch.sum, branch.term)
        rw.result()  # what is not needed any more leaves the graph now
        if self.reconstruct and context.calibration is not None:
            readers = {layer.name for layer in next_layers(rw.main, kept)}
            what += _refitted(rw, context, readers)
        return Change(kept.name, what)


class _Meter:
    """How far there is to go, and what a branch brings.

    Args:
        kind: of the budget.
        amount: of the budget.
        graph: as it is before anything leaves.
        context: with a stopwatch, for latency.
        removable: how many branches could leave.
    """

    def __init__(
        self, kind: str, amount: float, graph: gs.Graph, context: Context, removable: int
    ) -> None:
        self.kind, self.amount, self.context, self.removable = kind, amount, context, removable
        self.macs, self.bytes = _all_macs(graph), _all_bytes(graph)
        self.has_macs = all(node_macs(node) is not None for node in graph.nodes)
        timed = kind == "latency" and context.model is not None
        self.original = context.model.clone() if timed and context.model is not None else None

    def gain(self, branch: Branch) -> float:
        """What the budget wins by its removal, in its unit."""
        if self.kind == "bytes":
            return float(_own_bytes(branch) or 1)
        if self.kind == "ratio" or not self.has_macs:
            return 1.0
        return float(_macs(branch) or 1)

    def is_met(self, graph: gs.Graph, model: Model | None, removed: int) -> bool:
        """Whether enough is gone.

        Args:
            graph: as it is now.
            model: whose graph it is.
            removed: branches that are gone.
        """
        if self.kind == "ratio":
            return removed >= round(self.amount * self.removable)
        if self.kind == "bytes":
            return _all_bytes(graph) <= self.amount * self.bytes
        if self.kind == "macs":
            return _all_macs(graph) <= self.amount * self.macs
        stopwatch = self.context.stopwatch
        assert stopwatch is not None
        assert model is not None
        assert self.original is not None
        return removed > 0 and 1 / stopwatch.pair(self.original, model).ratio <= self.amount


def _removable(branches: Sequence[Branch]) -> int:
    """How many can leave: of every sum one term stays."""
    by_sum = Counter(branch.sum for branch in branches)
    return sum(min(count, len(node.inputs) - 1) for node, count in by_sum.items())


def _why_kept(meter: _Meter, some_left: bool) -> str:
    if some_left:
        return "it moves the output more, for what it saves, than what was removed"
    return f"a budget of {meter.kind}={meter.amount:g} is met without removing a branch"


def _all_macs(graph: gs.Graph) -> int:
    return sum(node_macs(node) or 0 for node in graph.nodes)


def _macs(branch: Branch) -> int:
    return sum(node_macs(node) or 0 for node in branch.nodes)


def _all_bytes(graph: gs.Graph) -> int:
    return sum(constant.nbytes for constant in constants_of(graph))


def _own_bytes(branch: Branch) -> int:
    """Bytes of weights that nothing else uses."""
    own = set(branch.nodes)
    held = {id(la.holder): la for la in branch.layers if own.issuperset(la.weight_tensor.outputs)}
    return sum(layer.holder.nbytes for layer in held.values())


def _least(branches: Sequence[Branch], meter: _Meter, context: Context) -> tuple[Branch, str]:
    """The branch that does the least harm for what it saves, and what harm it does."""
    calibration, model = context.calibration, context.model
    if calibration is None or model is None:
        harms = [_norm(branch) for branch in branches]
        texts = [f"norm of its last weights {harm:.3g}, no data" for harm in harms]
    else:
        held = calibration.halves()[1]
        trials = (_trial(model, branch) for branch in branches)
        found = list(held.distances(model, trials))
        harms = [distance.divergence for distance in found]
        texts = [f"without it alone the outputs diverge by {harm:.3g}" for harm in harms]
    prices = [harm / meter.gain(branch) for harm, branch in zip(harms, branches, strict=True)]
    best = int(np.argmin(prices))
    return branches[best], texts[best]


def _norm(branch: Branch) -> float:
    """Root mean square of the last weight of a branch, by its fan-in: the size of what it adds."""
    last = branch.layers[-1]
    weight = np.asarray(last.canonical(), np.float64)
    return float(np.sqrt(np.square(weight).sum(axis=2).mean()))


def _trial(model: Model, branch: Branch) -> Model:
    copy = model.clone()
    rewriter = Rewriter(copy.graph)
    label = node_label(branch.sum)
    drop(rewriter, next(n for n in copy.graph.nodes if node_label(n) == label), branch.term)
    rewriter.result()
    return copy


def drop(rw: Rewriter, node: Node, term: int) -> gs.Tensor:
    """Take a term out of a sum; returns the tensor that is the sum now."""
    rest = [tensor for index, tensor in enumerate(node.inputs) if index != term]
    what = f"does without `{node.inputs[term].name}`"
    if len(rest) == 1:
        other = rest[0]
        if rw.can_substitute(node, other):
            rw.substitute(node, other, what, Fidelity.LOSSY)
            return other
        rw.update(node, what, op="Identity", inputs=rest, attrs={}, fidelity=Fidelity.LOSSY)
    else:
        rw.update(node, what, inputs=rest, fidelity=Fidelity.LOSSY)
    return node.outputs[0]


def _refitted(rw: Rewriter, context: Context, names: set[str]) -> str:
    """Fit the named layers to what they returned in the original model."""
    problems = Problems(rw, context).restricted(
        lambda shared: all(layer.name in names for layer in shared.layers)
    )
    done = []
    for problem in problems:
        if not problem.has_data:
            continue
        assign(rw, problem, problem.target)
        done.append(f"`{node_label(problem.layer.node)}`")
    return f"; refitted {', '.join(done)}" if done else ""
