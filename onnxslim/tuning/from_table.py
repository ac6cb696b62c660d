"""The choice from the table of variants, corrected by whole models.

    table ─▶ within an allowed error ─▶ a whole model ─▶ by how much it was off ─▶ again

Owns: how much error the next choice may have. Not here: measuring and solving (see `table`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from onnxslim.details import TotalFigures
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.grammar import Pipeline
from onnxslim.pipeline.passes import Pass
from onnxslim.tuning.families import Family
from onnxslim.tuning.table import VariantTable, measured_table, passes_of
from onnxslim.tuning.trials import TrialOutcome, TrialRunner

_TRIALS: Final = 4  # whole models by which the table is corrected
_FIRST_ERROR: Final = 1e-3  # divergence of the first choice
_MOST_ERROR: Final = 1.0  # divergence at which a choice that changes nothing is given up
_LEAST_USE: Final = 0.7  # share of the floors at which a choice is good enough
_AIM: Final = 0.85  # share of the floors that the next choice should use
_POWER: Final = 1.5  # divergence grows like this power of the share used
_STEP: Final = 16.0  # the largest factor between two allowed errors


@dataclass
class TableChoice:
    """What came of a table.

    Attributes:
        table: the variants of each layer or group.
        chosen: by layer, the variant in the best whole model.
        predicted: what the table says of that model.
        measured: what it takes.
        outcomes: all whole models.
    """

    table: VariantTable = field(default_factory=VariantTable)
    chosen: dict[str, Any] = field(default_factory=dict)
    predicted: TotalFigures | None = None
    measured: TotalFigures | None = None
    outcomes: list[TrialOutcome] = field(default_factory=list)

    def improve(
        self,
        runner: TrialRunner,
        first: Sequence[Pass],
        families: Sequence[Family],
        is_over: Callable[[], bool],
    ) -> None:
        """Choose, make the whole model, and choose again by what it showed.

        Args:
            runner: makes and judges whole models.
            first: steps in front of those that are chosen.
            families: of the variants.
            is_over: whether the time is over.
        """
        allowed, tried = _FIRST_ERROR, set[tuple[str, ...]]()
        while self.table.menus and len(self.outcomes) < _TRIALS and not is_over():
            chosen = self.table.within(allowed)
            steps = passes_of(chosen.values(), families)
            key = tuple(map(str, steps))
            if not steps or key in tried:
                if allowed > _MOST_ERROR:
                    return
                allowed *= 1.5
                continue
            tried.add(key)
            outcome = runner.outcome([*first, *steps], is_free=True)
            self.outcomes.append(outcome)
            if outcome.error is not None:
                allowed /= _STEP
                continue
            self._note(outcome, chosen, runner)
            if _LEAST_USE <= outcome.use <= 1.0:
                return
            use = max(outcome.use, 1 / _STEP)
            allowed *= min(_STEP, max(1 / _STEP, (_AIM / use) ** _POWER))

    def _note(self, outcome: TrialOutcome, chosen: dict[str, Any], runner: TrialRunner) -> None:
        """Keep the figures of a whole model where no earlier one is as good."""
        earlier = [runner.score(one) for one in self.outcomes[:-1] if one.error is None]
        if earlier and runner.score(outcome) >= min(earlier):
            return
        whole, variants = runner.whole, list(chosen.values())
        left, left_ms = self.table.shares(variants)
        self.chosen = dict(chosen)
        self.predicted = TotalFigures(
            int(self.table.bytes * left),
            None if whole.ms is None or left_ms is None else whole.ms * left_ms,
            sum(one.error for one in variants),
        )
        self.measured = TotalFigures(outcome.file_bytes, outcome.ms, outcome.use)


def table_for(
    runner: TrialRunner, first: Sequence[Pass], families: Sequence[Family], seconds: float
) -> VariantTable:
    """Measure the variants of the layers behind the first steps.

    Args:
        runner: knows the model and its data.
        first: steps that every pipeline begins with.
        families: of the variants.
        seconds: that measuring may take.
    """
    run = runner.run
    model = run.try_pipeline(Pipeline(tuple(first)), runner.policy).model.clone()
    infer_shapes(model)
    with run.settings.progress.step("measuring what layers cost in each variant"):
        return measured_table(model, families, run.context_for(model), runner.aim.goal, seconds)
