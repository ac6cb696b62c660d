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
    stay: in BERT, the normalization of the sum does too. After each removal, the next branch is
    chosen anew.

Why it is correct:
    It is not exact. With calibration data, each branch is left out in turn, and the divergence of
    the outputs is measured on samples held back; the branch with the least divergence for what it
    saves is removed. Then what is left is refitted to what it returned in the original model, in
    closed form: the scales and shifts of normalizations, channel by channel, and the layers that
    read the sums. Each of the two stays only where it brings the outputs nearer on samples held
    back: few samples decide two numbers of each channel, and not those of a whole weight. Without
    data, the norms of the branches' weights take the place of the divergence.

Declines when:
    1. No other term of the sum has the shape of the sum, or a term is constant.
    2. The branch has no weights that it alone needs.
    3. `only` and `skip` leave the branch out.

Fidelity:
    LOSSY.

Reference:
    Wen et al., arXiv:1608.03665 (depth-wise sparsity of residual networks); Huang et al.,
    arXiv:1603.09382 (residual networks bear the loss of branches); Hassibi, Stork (1993) for the
    refit; Men et al., ShortGPT, arXiv:2403.03853 (layers of transformers); Minoux, Accelerated
    greedy algorithms (1978), for measuring again only what may be next. We differ: nothing is
    trained, and branches are ranked by what the outputs lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.analysis.branches import residual_branches
from onnxslim.blocks.run import BlockOptions, BlockPruning
from onnxslim.errors import NotApplicable
from onnxslim.graph.counts import with_bodies
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.budgeted_pass import (
    DEFAULT_BUDGET,
    BudgetedPass,
    leaving_share_option,
    remaining_share_option,
)
from onnxslim.lossy.budgets import known_macs
from onnxslim.pipeline.layer_filter import FilteredPass, only_option, skip_option
from onnxslim.pipeline.options import OptionValue, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.trained_pass import TrainedPass
from onnxslim.records import Fidelity, PassResult


@dataclass(frozen=True)
class PruneBlocks(TrainedPass, BudgetedPass, FilteredPass):
    """Remove whole residual branches, those whose absence moves the output least."""

    name: ClassVar[str] = "prune-blocks"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,prune-blocks:ratio=0.2": "a fifth of the residual branches",
        "prune-blocks:macs=0.8": "as many as leave 80 % of the multiply-accumulates",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"ratio": (0.99,)}
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {"ratio": (0.0, 0.95)}

    ratio: float | None = leaving_share_option(
        f"share of the branches to remove; {DEFAULT_BUDGET.amount} where no budget is given"
    )
    macs: float | None = remaining_share_option("share of the multiply-accumulates that may remain")
    latency: float | None = remaining_share_option(
        "share of the latency that may remain, as measured"
    )
    bytes_: float | None = remaining_share_option("share of the constants' bytes that may remain")
    reconstruct: bool = option(
        default=True,
        help="refit normalizations and layers that are left; needs calibration samples",
    )
    only: tuple[str, ...] = only_option("branches to remove")
    skip: tuple[str, ...] = skip_option("branches")

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse a budget that cannot be measured, and graphs without branches.

        Raises:
            NotApplicable: saying what to give.
        """
        self.check_stopwatch(context)
        labels = [branch.label for branch in residual_branches(graph)]
        if not labels:
            raise NotApplicable("no residual branch with weights of its own was found")
        self.check_patterns(context, labels)
        if self.macs is not None:
            known_macs(with_bodies(graph.nodes))

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The branches."""
        return tuple(dict.fromkeys(branch.label for branch in residual_branches(graph)))

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Remove one branch after the other until the budget is met."""
        options = BlockOptions(
            self.budget or DEFAULT_BUDGET, self.reconstruct, self.selection(context)
        )
        pruning = BlockPruning(Rewriter(graph), context, options)
        result = pruning.run()
        if pruning.untimed is None:
            return result
        found = pruning.untimed
        again = replace(self, latency=None, **{found.kind: found.amount})  # type: ignore[arg-type]
        return replace(result, resolved=str(again))
