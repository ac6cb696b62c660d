"""One run of `prune-channels`: choose units, refit the layers that read them, cut the units out.

    trace the graph -> removal orders (`scoring`) -> levels within the budget (`budgets`)
                    -> refit (`reconstruct`)      -> cut (`groups.shrink`)

Owns: the order of these steps, and the report. Not here: the options (see `passes.prune_channels`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxslim.channels.alignment import UNMEASURED, fastest_multiple, layer_milliseconds
from onnxslim.channels.budgets import choice_for_budget, layer_nodes, units_kept, work_for
from onnxslim.channels.criteria import ChannelCriterion
from onnxslim.channels.groups import ChannelGroup, channel_groups, shrink
from onnxslim.channels.latency_search import LatencySearch
from onnxslim.channels.levels import LevelChoice, LevelChooser
from onnxslim.channels.readers import ReaderColumns
from onnxslim.channels.reconstruct import refit_readers, zero_removed
from onnxslim.channels.removal_order import RemovalLimits, RemovalOrder
from onnxslim.channels.scoring import GroupScorer
from onnxslim.channels.units import indexable
from onnxslim.channels.unpruned import unpruned_layers
from onnxslim.channels.work import Work
from onnxslim.errors import NotApplicable, RuntimeFailure
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.budgets import Budget
from onnxslim.lossy.problems import Schedule
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context
from onnxslim.records import Change, Fidelity, PassResult

Mask = npt.NDArray[np.bool_]
PlanLookup = Callable[[str], float | None]

_WITHOUT_DATA = (
    "no calibration samples: channels were chosen by their weights alone and no layer was refitted "
    "to what is left, which costs most of the accuracy that could be kept; give --calib"
)


@dataclass(frozen=True)
class PruneOptions:
    """The options of `prune-channels`, with the meaning of `auto` filled in.

    Attributes:
        spread: whether the budget is spread over groups by their effect on the output.
        align: the multiple that channels of a layer stay; None: measure which one is fastest.
        plan: the number of units that a group keeps, by the name of a layer that writes it, or None
            if it keeps all; takes the place of a budget.
        changes_signature: whether inputs and outputs that are caches may lose heads.
    """

    budget: Budget
    criterion: ChannelCriterion
    spread: bool
    reconstruct: bool
    align: int | None
    steps: int
    min_channels: int
    layers: LayerFilter
    plan: PlanLookup | None
    changes_signature: bool = False


class Pruning:
    """A graph that loses channels.

    Attributes:
        align: the multiple of channels, if it was measured.
        kept: the number of units that groups keep, by their names, if that was decided by timing.
    """

    def __init__(self, rewriter: Rewriter, context: Context, options: PruneOptions) -> None:
        self.rw, self.context, self.options = rewriter, context, options
        self.align: int | None = None
        self.kept: Mapping[str, int] | None = None
        self._channels = channel_groups(rewriter.main, changes_signature=options.changes_signature)
        self._groups = [group for group in self._channels.groups if self._is_wanted(group)]
        self._readers = ReaderColumns.of(self._channels, self._groups)
        self._gone = np.zeros(self._channels.units.count, bool)
        self._errors: dict[str, float] = {}

    def run(self) -> PassResult:
        """Choose, refit and cut."""
        self._report_pins()
        try:
            limits = RemovalLimits(self._multiple(), self.options.min_channels)
            steps = range(1, self.options.steps + 1)
            for step in self.context.progress.over("removing", steps, "steps"):
                self._step(step / self.options.steps, limits)
        except NotApplicable as reason:  # raised before anything is changed
            self.rw.decline(str(reason))
            return self._result(())
        if not self._gone.any():
            for group in self._groups:
                self.rw.skip(group.name, "no multiple of channels is near enough to the budget")
            for skip in unpruned_layers(self.rw.main, self._channels):
                self.rw.skip(skip.node, skip.why)
            return self._result(())
        if self.context.calibration is None:
            self.rw.skip(self.rw.main.name, _WITHOUT_DATA)
        changes = tuple(self._changes())
        # traced again, as refits may have added biases, which are cut too; units are the same
        shrink(self.rw, self._channels.of(self.rw.main), self._gone)
        return self._result(changes)

    def _result(self, changes: Sequence[Change]) -> PassResult:
        result = self.rw.result()
        fidelity = Fidelity.LOSSY if changes else None
        return PassResult(tuple(changes), result.skips, fidelity, notes=self._notes())

    def _notes(self) -> tuple[str, ...]:
        """What whoever feeds the model must know."""
        main = self.rw.main
        words = [
            f"`{tensor.name}` ({int(mask.sum())} of {len(mask)} heads)"
            for tensor in (*main.inputs, *main.outputs)
            for mask in [*(getattr(tensor, "kept", None) or {}).values()][:1]
        ]
        if not words:
            return ()
        return (
            "The signature has changed, as `change-signature=true` allows: what runs the model "
            f"must give and take smaller caches: {', '.join(words)}.",
        )

    # ------------------------------------------------------------------ which groups

    def _is_wanted(self, group: ChannelGroup) -> bool:
        """Whether units of a group may leave; if `skip` alone forbids it, the report says so."""
        names = [member.label for member in group.writers]
        only, skip = replace(self.options.layers, skip=()), replace(self.options.layers, only=())
        # one layer is enough to want a group, and one to keep it
        if not any(map(only.accepts, names)):
            return False
        blocked = next((name for name in names if not skip.accepts(name)), None)
        if blocked is not None:
            self.rw.skip(group.name, f"`{blocked}` is left alone, as `skip` says")
            return False
        return bool(len(self._channels.free(group)))

    def _report_pins(self) -> None:
        for group in self._channels.groups:
            is_single = group.writers[0].ids.size == group.size
            parts = "channels" if is_single else "units of channels"
            for why, count in group.pins.items():
                self.rw.skip(group.name, f"{count} of {group.size} {parts} must stay: {why}")

    def _multiple(self) -> int:
        """The multiple that channels stay: the option, or the fastest on this machine."""
        stopwatch, model = self.context.stopwatch, self.context.model
        if self.options.align is not None:
            return self.options.align
        if self.options.plan is not None:
            return 1
        if stopwatch is not None and model is not None:
            try:
                self.align = fastest_multiple(stopwatch, model, layer_nodes(self._channels))
            except RuntimeFailure:
                self.align = None  # a layer that cannot be timed alone
        return self.align or UNMEASURED

    # ------------------------------------------------------------------ a step

    def _step(self, progress: float, limits: RemovalLimits) -> None:
        """Choose units for `progress` (0 to 1) of the way to the budget, and refit."""
        scorer = GroupScorer(
            self.rw,
            self.context,
            self._readers,
            self._groups,
            self.options.criterion,
            self.options.reconstruct,
            self.options.spread,
            limits,
        )
        orders, weights = scorer.orders(self._gone)
        self._gone = self._choose(orders, weights, progress).gone
        if not self.options.reconstruct or not self._gone.any():
            return
        self._zero_removed()
        problems = self._readers.problems(self.rw, self.context, Schedule())
        self._errors.update(refit_readers(self._readers, problems, self._gone))

    def _zero_removed(self) -> None:
        """Zero units that are gone and read without weights: the refit must not see them."""
        weightless = np.zeros_like(self._gone)
        for group in self._groups:
            if group.weightless_readers:
                weightless[group.units] = True
        if (weightless & self._gone).any():
            zero_removed(self.rw, self._channels, weightless & self._gone)

    def _choose(
        self, orders: Sequence[RemovalOrder], weights: Sequence[float], progress: float
    ) -> LevelChoice:
        budget, model, plan = self.options.budget, self.context.model, self.options.plan
        units = self._channels.units.count
        if plan is None and budget.kind == "latency":
            plan = self._timed_plan(orders, weights)
        budget = Budget("ratio", 0.0) if plan is not None else budget
        refitted = self.options.reconstruct
        work = work_for(
            budget,
            self._channels,
            self._groups,
            model,
            refitted=refitted,
            calibration=self.context.calibration,
        )
        chooser = LevelChooser(orders, weights, work, units)
        if plan is None:
            return choice_for_budget(chooser, budget, progress, spread=self.options.spread)
        return chooser.keeping([_kept(plan, order.group) for order in orders], progress)

    def _timed_plan(self, orders: Sequence[RemovalOrder], weights: Sequence[float]) -> PlanLookup:
        """The units that groups keep within a budget of latency; timed once, in the first step."""
        if self.kept is None:
            stopwatch, model = self.context.stopwatch, self.context.model
            assert stopwatch is not None
            assert model is not None
            alone = layer_milliseconds(stopwatch, model, layer_nodes(self._channels))
            work = Work.of(self._channels, alone)
            chooser = LevelChooser(orders, weights, work, self._channels.units.count)
            search = LatencySearch(
                stopwatch,
                model,
                self._channels,
                spread=self.options.spread,
                progress=self.context.progress,
            )
            self.kept = units_kept(search.choice(chooser, self.options.budget), orders)
        return self.kept.get

    # ------------------------------------------------------------------ report

    def _changes(self) -> list[Change]:
        gone = indexable(self._gone)
        units, trace = self._channels.units, self._channels.trace
        words: dict[str, list[str]] = {}
        for members, side in ((trace.writers, "outputs"), (trace.readers, "inputs")):
            for member in members:
                left = int((~gone[units.of_ids(member.ids)]).sum())
                if left < len(member.ids):
                    text = f"{left} of {len(member.ids)} {side}"
                    words.setdefault(member.label, []).append(text)
        changes = []
        for label in dict.fromkeys([*words, *self._errors]):
            parts = [f"kept {' and '.join(words[label])}"] if label in words else []
            if label in self._errors:
                parts.append(f"refitted, relative output error {self._errors[label]:.2g}")
            changes.append(Change(label, "; ".join(parts)))
        for node, ids in trace.neighbour_mixers:
            if gone[units.of_ids(ids)].any():
                what = "normalizes over other neighbours now (LRN), which no refit has seen"
                changes.append(Change(node_label(node), what))
        return changes


def _kept(plan: PlanLookup, group: ChannelGroup) -> float:
    """The number of units that a plan keeps of a group; all if it names no layer that writes it."""
    said = (plan(member.label) for member in group.writers)
    return next((kept for kept in said if kept is not None), group.size)
