"""Which branch does the least harm for what its removal brings, and how a branch is removed.

Owns: the harm, measured on samples held back or estimated from weights. Not here: what a removal
brings (see `meter`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.branches import Branch
from onnxslim.blocks.meter import BranchMeter
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity


class Ranking:
    """The branches of a graph that loses one after the other, and what harm each does.

    A removal changes what the branches left add, mostly for the worse. So of those measured before,
    only the ones that would be next are measured again, until the best of them stays the best (the
    lazy evaluation of Minoux, 1978).

    Args:
        meter: what the removal of a branch brings.
        context: with the model as it is now.
    """

    def __init__(self, meter: BranchMeter, context: Context) -> None:
        self._meter, self._context = meter, context
        self._harms: dict[str, float] = {}

    def least_harmful(self, branches: Sequence[Branch]) -> tuple[Branch, str]:
        """The branch that does the least harm for what its removal brings; the harm in words."""
        present: dict[str, float] = {}
        unknown = [branch for branch in branches if branch.label not in self._harms]
        while True:
            for branch, harm in zip(unknown, self._measured(unknown), strict=True):
                present[branch.label] = self._harms[branch.label] = harm
            prices = [self._harms[branch.label] / self._meter.gain(branch) for branch in branches]
            best = branches[int(np.argmin(prices))]
            if best.label in present:
                return best, self._words(present[best.label])
            unknown = [best]

    def _measured(self, branches: Sequence[Branch]) -> list[float]:
        calibration, model = self._context.calibration, self._context.model
        if calibration is None or model is None:
            return [_norm(branch) for branch in branches]
        held = calibration.halves()[1]
        trials = (_without(model, branch) for branch in branches)
        return [distance.divergence for distance in held.distances(model, trials)]

    def _words(self, harm: float) -> str:
        if self._context.calibration is None:
            return f"norm of its last weights {harm:.3g}, no data"
        return f"without it alone the outputs diverge by {harm:.3g}"


def _norm(branch: Branch) -> float:
    """Root mean square over outputs of the norms of the last weight: the size of what is added."""
    last = branch.layers[-1]
    weight = np.asarray(last.canonical(), np.float64)  # (groups, rows, columns)
    return float(np.sqrt(np.square(weight).sum(axis=2).mean()))


def _without(model: Model, branch: Branch) -> Model:
    """A copy of the model without a branch."""
    copy = model.clone()
    rewriter = Rewriter(copy.graph)
    label = node_label(branch.sum)
    drop_term(rewriter, next(n for n in copy.graph.nodes if node_label(n) == label), branch.term)
    rewriter.result()
    return copy


def drop_term(rw: Rewriter, node: Node, term: int) -> gs.Tensor:
    """Remove input number `term` from a sum; returns the tensor that holds the sum now."""
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
