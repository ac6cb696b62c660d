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


def least_harmful(
    branches: Sequence[Branch], meter: BranchMeter, context: Context
) -> tuple[Branch, str]:
    """The branch that does the least harm for what its removal brings, and the harm in words."""
    calibration, model = context.calibration, context.model
    if calibration is None or model is None:
        harms = [_norm(branch) for branch in branches]
        texts = [f"norm of its last weights {harm:.3g}, no data" for harm in harms]
    else:
        held = calibration.halves()[1]
        trials = (_without(model, branch) for branch in branches)
        harms = [distance.divergence for distance in held.distances(model, trials)]
        texts = [f"without it alone the outputs diverge by {harm:.3g}" for harm in harms]
    prices = [harm / meter.gain(branch) for harm, branch in zip(harms, branches, strict=True)]
    best = int(np.argmin(prices))
    return branches[best], texts[best]


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
