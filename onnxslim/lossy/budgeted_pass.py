"""`BudgetedPass`: base of the passes that take a budget, and the options that set one.

    @dataclass(frozen=True)
    class PruneBlocks(BudgetedPass):
        ratio: float | None = leaving_share_option("share of the branches that leaves")
        macs: float | None = remaining_share_option("share of the multiply-accumulates that ...")

        ... self.budget ...      # a `Budget`, or None where no option gives one

The base declares no options itself, so that a pass lists them where its help should show them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, TypeVar

from onnxslim.errors import NotApplicable
from onnxslim.lossy.budgets import Budget
from onnxslim.pipeline.options import interval, option
from onnxslim.pipeline.passes import Context, Pass

P = TypeVar("P", bound="BudgetedPass")

DEFAULT_BUDGET: Final = Budget("ratio", 0.5)
"""The budget of a pass that removes parts, where no option gives one."""


def leaving_share_option(help: str) -> Any:
    """An option for the share that leaves, in [0, 1)."""
    return option(None, interval(0, 1, open_right=True), help)


def remaining_share_option(help: str) -> Any:
    """An option for the share that may remain, in (0, 1]."""
    return option(None, interval(0, 1, open_left=True), help)


@dataclass(frozen=True)
class BudgetedPass(Pass):
    """A pass with at most one budget.

    Attributes:
        budgets: the options that are budgets over the whole model.
        alternatives: the options of which at most one may be given, budgets among them.
    """

    budgets: ClassVar[tuple[str, ...]] = ("ratio", "macs", "latency", "bytes")
    alternatives: ClassVar[tuple[str, ...]] = budgets

    def __post_init__(self) -> None:
        """Check options against each other.

        Raises:
            UsageError: more than one of the alternatives is given.
        """
        super().__post_init__()
        self.check_at_most_one(*self.alternatives)

    @property
    def budget(self) -> Budget | None:
        """The budget that is given."""
        fields = {spec.name: spec.field for spec in self.options()}
        kind = next(iter(self.given(*self.budgets)), None)
        return None if kind is None else Budget(kind, getattr(self, fields[kind]))

    def on_the_way(self: P, before: float, after: float) -> P:
        """The pass with the budget that leads from one share of the way to another.

        Args:
            before: in [0, 1), of all that is to leave: what it will be run on has lost that.
            after: in (before, 1].
        """
        budget = self.budget or DEFAULT_BUDGET
        left = budget.remaining(after) / budget.remaining(before)
        (field,) = (spec.field for spec in self.options() if spec.name == budget.kind)
        changed: Any = {field: 1 - left if budget.kind == DEFAULT_BUDGET.kind else left}
        return replace(self, **changed)

    def softened(self: P, share: float) -> P | None:
        """See `Pass.softened`: the budget at a part of the way to it."""
        if self._sets(self.strengths_of_layers):
            return None
        if self.budget is None and DEFAULT_BUDGET.kind not in self.budgets:
            return super().softened(share)
        return self.on_the_way(0.0, share)

    def hardest(self: P) -> P | None:
        """See `Pass.hardest`."""
        return None if self.budget is not None else super().hardest()

    def check_stopwatch(self, context: Context) -> None:
        """Refuse a budget of latency where nothing is timed.

        Raises:
            NotApplicable: saying what to give.
        """
        budget = self.budget
        if budget is not None and budget.kind == "latency" and context.stopwatch is None:
            raise NotApplicable(
                "a budget of latency needs models to be timed: leave out --no-latency and give "
                "inputs that the model runs on (--calib), or give a budget of macs"
            )
