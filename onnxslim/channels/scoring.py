"""Score the units of each group: what each is worth, what removing it costs, how much that matters.

Owns: which of weights, samples and reading layers are asked, and the `RemovalOrder` that follows.
Not here: the criteria (see `criteria`), where an order may stop (see `removal_order`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.channels.criteria import (
    ChannelCriterion,
    GroupFacts,
    Needs,
    channels_read,
    unit_scores,
)
from onnxslim.channels.evidence import Evidence, costs_along
from onnxslim.channels.groups import ChannelGroup
from onnxslim.channels.readers import ReaderColumns, gather
from onnxslim.channels.removal_order import RemovalLimits, RemovalOrder, removal_order
from onnxslim.channels.sensitivities import RemovalTrial, sensitivities
from onnxslim.errors import NotApplicable
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.problems import Problem, Schedule, Target
from onnxslim.pipeline.passes import Context
from onnxslim.services.activity import ChannelActivity

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_TRIAL: Final = 0.2  # of the units that may leave
_GRADIENTS: Final = 512  # samples of which gradients are taken


@dataclass(frozen=True)
class GroupScorer:
    """Puts the units of some groups in the order in which they should leave.

    Attributes:
        refitted: whether the layers that read what is left will be fitted to it.
        spread: whether it matters what groups do to the output of the model.
    """

    rewriter: Rewriter
    context: Context
    readers: ReaderColumns
    groups: Sequence[ChannelGroup]
    criterion: ChannelCriterion
    refitted: bool
    spread: bool
    limits: RemovalLimits

    def orders(self, gone: Mask) -> tuple[list[RemovalOrder], list[float]]:
        """The removal order of each group, and the change of the output for each unit of its error.

        Units that earlier steps have removed, `gone`, stay the first to leave.

        Raises:
            NotApplicable: the criterion cannot score a group.
        """
        activity = None
        if self.criterion.needs is Needs.ACTIVITY:
            activity = reader_activity(self.context, self.groups)
        effects = self._effects() if self.criterion.needs is Needs.EFFECTS else None
        problems: dict[str, Problem] = {}
        found: dict[int, tuple[RemovalOrder, RemovalTrial]] = {}
        for index, evidence in self._evidence(problems):
            found[index] = self._order(self.groups[index], evidence, activity, effects, gone)
            del evidence  # it is large
        by_group = [found[index] for index in range(len(self.groups))]
        weights = [1.0] * len(by_group)
        if self.spread and self.context.calibration is not None:
            trials = [trial for _, trial in by_group]
            with self.context.progress.step("measuring what each group does to the outputs"):
                weights = sensitivities(self.context, self.readers, problems, trials)
        return [order for order, _ in by_group], weights

    def _effects(self) -> Mapping[str, Array]:
        """What the channels that readers read do to the outputs.

        Raises:
            NotApplicable: there are no samples.
        """
        if self.context.trainer is None:
            raise NotApplicable(
                f"criterion {self.criterion.name} takes gradients on samples: give --calib"
            )
        assert self.context.model is not None
        read = (channels_read(member) for group in self.groups for member in group.readers)
        axes = dict(one for one in read if one is not None)
        return self.context.trainer.effects(self.context.model, axes, _GRADIENTS)

    def _evidence(self, problems: dict[str, Problem]) -> Iterator[tuple[int, Evidence | None]]:
        """What readers say of each group, in the order in which that is known."""
        asked = self.criterion.needs in (Needs.PRODUCTS, Needs.INVERSES) or self.spread
        if self.context.calibration is None or not asked:
            yield from ((index, None) for index in range(len(self.groups)))
            return
        schedule = Schedule(sequential=False, aim=Target.CURRENT)
        measured = self.readers.problems(self.rewriter, self.context, schedule)
        with_inverses = self.criterion.needs is Needs.INVERSES or self.refitted
        yield from gather(
            self.readers, measured, self.groups, problems, with_inverses=with_inverses
        )

    def _order(
        self,
        group: ChannelGroup,
        evidence: Evidence | None,
        activity: Mapping[str, ChannelActivity] | None,
        effects: Mapping[str, Array] | None,
        gone: Mask,
    ) -> tuple[RemovalOrder, RemovalTrial]:
        """The removal order of a group, with its errors, and its first units as a trial."""
        if group.weightless_readers or not group.readers:
            evidence = activity = None  # no reader can speak for all that uses its units
        worth = self._worth(group, evidence, activity, effects)
        # units that earlier steps removed stay the first to leave
        ranking = np.where(gone, -np.inf, worth)
        order = removal_order(self.readers.channels, group, ranking, self.limits)
        fresh = order.units[~gone[order.units]]
        tried = fresh[: max(1, round(_TRIAL * len(fresh)))]
        if evidence is None:
            # the square of what units are worth stands for their errors, of which all make 1
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
        self,
        group: ChannelGroup,
        evidence: Evidence | None,
        activity: Mapping[str, ChannelActivity] | None,
        effects: Mapping[str, Array] | None,
    ) -> Array:
        """For each unit of the graph; those of other groups do not matter."""
        facts = GroupFacts(
            self.readers.channels, group, self.context.seed, activity, evidence, effects
        )
        try:
            return unit_scores(self.criterion, facts)
        except LookupError as error:
            raise NotApplicable(
                f"criterion {self.criterion.name} cannot score `{group.name}`: {error}; put the "
                "pass before simplify, or choose l1 or l2"
            ) from error


def reader_activity(context: Context, groups: Sequence[ChannelGroup]) -> dict[str, ChannelActivity]:
    """Statistics of the inputs of all layers that read the groups and can be observed, by name."""
    assert context.calibration is not None
    assert context.model is not None
    names = {
        member.layer.name: None for group in groups for member in group.readers if member.layer
    }
    activity = context.calibration.activity(context.model, list(names))
    return {found.layer: found for found in activity if isinstance(found, ChannelActivity)}
