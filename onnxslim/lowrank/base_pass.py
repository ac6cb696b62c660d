"""`SplitPass`: base of the passes that put several small operators in the place of a layer.

A pass says which operators it is for and which methods a layer may be split by. Factors are fitted
to the original outputs on the present inputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer
from onnxslim.errors import UsageError
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.budgeted_pass import (
    BudgetedPass,
    leaving_share_option,
    remaining_share_option,
)
from onnxslim.lossy.layer_pass import LayerPass
from onnxslim.lossy.problems import MAX_INPUTS
from onnxslim.lowrank.plan import PlanEntry, planned_splits
from onnxslim.lowrank.run import SplitOptions, Splitting
from onnxslim.pipeline.options import at_least, interval, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Goal
from onnxslim.records import Fidelity, PassResult

_CHOOSING: Final = ("rank", "ratio", "latency", "macs", "bytes", "rank-selection", "energy", "goal")


@dataclass(frozen=True)
class SplitPass(LayerPass, BudgetedPass):
    """Layers split into smaller operators, with the options that say how far."""

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    changes_weights: ClassVar[bool] = False
    max_inputs: ClassVar[int | None] = MAX_INPUTS
    budgets: ClassVar[tuple[str, ...]] = ("latency", "macs", "bytes")
    alternatives: ClassVar[tuple[str, ...]] = ("rank", "ratio", *budgets, "plan")
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {
        "ratio": (0.0, 0.9),
        "energy": (1.0, 0.5),
    }
    strengths_of_layers: ClassVar[tuple[str, ...]] = ("rank", "plan", "rank-selection")
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
        (), PlanEntry(), "exactly these splits, without measuring; reports spell it"
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

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse patterns that match no layer, and a budget of latency where nothing is timed.

        Raises:
            NotApplicable: saying what to give.
            UsageError: naming the pattern that matches nothing.
        """
        self.check_stopwatch(context)
        super().requires(graph, context)

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
        splitting = Splitting(rw, context, self._options(context))
        splitting.run()
        result = rw.result()
        if splitting.plan and splitting.is_timed:
            return replace(result, resolved=str(self._planned(splitting.plan)))
        return result

    def _planned(self, plan: Sequence[str]) -> SplitPass:
        """The pass with exactly these splits, and none of the options that chose them."""
        unset = {spec.field: spec.default for spec in self.options() if spec.name in _CHOOSING}
        return replace(self, **{**unset, "plan": tuple(plan)})  # type: ignore[arg-type]

    def _options(self, context: Context) -> SplitOptions:
        is_auto = self.goal == "auto"
        return SplitOptions(
            ops=self.ops,
            methods=self.methods,
            layers=self.selection(context),
            schedule=self.schedule,
            rank=self.rank,
            energy=self.energy,
            ratio=self.ratio,
            budget=self.budget,
            rank_selection=self.rank_selection,
            for_bytes=context.goal is Goal.BYTES if is_auto else self.goal == "bytes",
            align=self.align,
            plan=planned_splits(self.plan),
        )
