"""Score the units of each group: what each is worth, what removing it costs, how much that matters.

Owns: which of weights, samples and reading layers are asked, and the `RemovalOrder` that follows.
Not here: the criteria (see `importance`), where an order may stop (see `removal_order`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.channels.activity import activity_worth
from onnxslim.channels.groups import ChannelGroup
from onnxslim.channels.importance import (
    BY_ACTIVITY,
    BY_READERS,
    BY_WEIGHT,
    Criterion,
    Evidence,
    costs_along,
    weight_worth,
    worth_by_readers,
)
from onnxslim.channels.reconstruct import Readers, ReadingLayer, RemovalTrial, gather, sensitivities
from onnxslim.channels.removal_order import RemovalLimits, RemovalOrder, removal_order
from onnxslim.errors import NotApplicable
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.problems import Schedule, Target
from onnxslim.pipeline.passes import Context

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_TRIAL: Final = 0.2  # of the units that may leave


@dataclass(frozen=True)
class GroupScorer:
    """Scores the units of some groups.

    Attributes:
        rewriter: of the graph.
        context: what may be measured with.
        readers: of the groups.
        groups: whose units are scored.
        measure: what units are worth.
        refitted: whether the layers that read what is left are fitted to it.
        spread: whether it matters what groups do to the output.
        limits: what every level leaves.
    """

    rewriter: Rewriter
    context: Context
    readers: Readers
    groups: Sequence[ChannelGroup]
    measure: Criterion
    refitted: bool
    spread: bool
    limits: RemovalLimits

    def orders(self, gone: Mask) -> tuple[list[RemovalOrder], list[float]]:
        """The removal order of each group, and what a relative error of it does to the output.

        Args:
            gone: units that have left: they stay the first to leave.

        Raises:
            NotApplicable: the measure cannot score a group.
        """
        activity = self._activity()
        kept: dict[str, ReadingLayer] = {}
        found: dict[int, tuple[RemovalOrder, RemovalTrial]] = {}
        for index, evidence in self._evidence(kept):
            found[index] = self._scored(self.groups[index], evidence, activity, gone)
            del evidence  # it is large
        made = [found[index] for index in range(len(self.groups))]
        weights = [1.0] * len(made)
        if self.spread and self.context.calibration is not None:
            self.context.tell("what each group does to the output")
            trials = [trial for _, trial in made]
            weights = sensitivities(self.context, self.readers.channels, kept, trials)
        return [order for order, _ in made], weights

    def _activity(self) -> Array | None:
        if self.measure not in BY_ACTIVITY:
            return None
        return activity_worth(self.context, self.readers.channels, self.groups, self.measure)

    def _evidence(self, kept: dict[str, ReadingLayer]) -> Iterator[tuple[int, Evidence | None]]:
        """What readers say of each group, in the order in which that is known."""
        asked = self.measure in BY_READERS or self.spread
        if self.context.calibration is None or not asked:
            yield from ((index, None) for index in range(len(self.groups)))
            return
        self.context.tell("moments of the layers that read channels")
        schedule = Schedule(sequential=False, aim=Target.CURRENT)
        problems = self.readers.problems(self.rewriter, self.context, schedule)
        views = self.measure is Criterion.OBS or self.refitted
        yield from gather(self.readers, problems, self.groups, kept, with_views=views)

    def _scored(
        self, group: ChannelGroup, evidence: Evidence | None, activity: Array | None, gone: Mask
    ) -> tuple[RemovalOrder, RemovalTrial]:
        """The removal order of a group, with its errors, and a part of it to be tried."""
        if group.weightless_readers or not group.readers:
            evidence = activity = None  # no reader can speak for all that uses its units
        worth = self._worth(group, evidence, activity)
        # what has left stays the first to leave
        ranking = np.where(gone, -np.inf, worth)
        order = removal_order(self.readers.channels, group, ranking, self.limits)
        fresh = order.units[~gone[order.units]]
        tried = fresh[: max(1, round(_TRIAL * len(fresh)))]
        if evidence is None:
            costs = np.square(np.where(gone, 0.0, worth))
            costs /= max(float(costs[group.units].sum()), 1e-300)
            lost = np.concatenate([[0.0], np.cumsum(costs[order.units])])
            errors = lost[list(order.counts)]
            error = float(costs[tried].sum())
        else:
            own = evidence.place[tried]
            error = float(evidence.products[np.ix_(own, own)].sum())
            errors = costs_along(evidence, evidence.place[order.units], order.counts)
        return replace(order, errors=tuple(errors.tolist())), RemovalTrial(group, tried, error)

    def _worth(
        self, group: ChannelGroup, evidence: Evidence | None, activity: Array | None
    ) -> Array:
        """For each unit of the graph; those of other groups do not matter."""
        if activity is not None:
            return activity
        if evidence is not None and self.measure in BY_READERS:
            worth = np.zeros(self.readers.channels.units.count)
            worth[group.units] = worth_by_readers(evidence, self.measure)
            return worth
        measure = self.measure if self.measure in BY_WEIGHT else Criterion.PRODUCT
        try:
            return weight_worth(self.readers.channels, group, measure, self.context.seed)
        except LookupError as error:
            raise NotApplicable(
                f"criterion {measure} cannot score `{group.name}`: {error}; put the pass before "
                "simplify, or choose l1 or l2"
            ) from error


__all__ = ["GroupScorer"]
