"""The layers that read the channels of some groups, and what they say of these channels.

Owns: which column of a reader belongs to which unit, and one look at the moments of all readers.
Not here: what is made of them (see `evidence`), the refit of the readers (see `reconstruct`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.layers import WeightLayer
from onnxslim.channels.evidence import Evidence
from onnxslim.channels.groups import ChannelGroup, Channels
from onnxslim.channels.tracing import Member
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.problems import Problem, Problems, Schedule
from onnxslim.pipeline.passes import Context

Ids = npt.NDArray[np.int64]


@dataclass
class ReaderColumns:
    """The units of the columns of all layers that read the channels of some groups.

    Attributes:
        units: by the name of the layer, (groups, columns); −1 where a column has none.
    """

    channels: Channels
    units: dict[str, Ids] = field(default_factory=dict)

    @classmethod
    def of(cls, channels: Channels, groups: Sequence[ChannelGroup]) -> ReaderColumns:
        """The columns of the layers that read `groups`."""
        found = cls(channels)
        for group in groups:
            for member in group.readers:
                if member.layer is not None:
                    found.units[member.layer.name] = column_units(channels, member, member.layer)
        return found

    def problems(self, rewriter: Rewriter, context: Context, schedule: Schedule) -> Problems:
        """The problems of these layers alone."""
        problems = Problems(rewriter, context, schedule=schedule)
        return problems.restricted(
            lambda shared: any(layer.name in self.units for layer in shared.layers)
        )


def column_units(channels: Channels, member: Member, layer: WeightLayer) -> Ids:
    """The unit of each column of the canonical weight, (groups, columns)."""
    by_group = channels.units.of_ids(member.ids).reshape(layer.groups, -1)
    return np.repeat(by_group, layer.columns // by_group.shape[1], axis=1)


def gather(
    readers: ReaderColumns,
    problems: Problems,
    groups: Sequence[ChannelGroup],
    kept: dict[str, Problem],
    *,
    with_inverses: bool,
) -> Iterator[tuple[int, Evidence]]:
    """The evidence for every group, from one look at the moments of all readers.

    Each evidence is given away as soon as all readers of its group were seen, as it is large.

    Args:
        readers: the layers that read the groups.
        problems: of these layers, all measured on the inputs that they have now.
        groups: whose evidence is gathered.
        kept: receives the problems by the names of the layers, without their metrics, which are
            large.
        with_inverses: see `Evidence.add`.

    Yields:
        The place of a group, and its evidence.
    """
    waiting = {
        index: {m.layer.name for m in group.readers if m.layer is not None}
        for index, group in enumerate(groups)
    }
    started: dict[int, Evidence] = {}

    def finished() -> Iterator[tuple[int, Evidence]]:
        for index in [index for index, names in waiting.items() if not names]:
            del waiting[index]
            found = started.pop(index, None)
            yield index, found or Evidence.empty(readers.channels, groups[index])

    yield from finished()
    for problem in problems:
        for layer in problem.layers:
            units = readers.units.get(layer.name)
            if units is None:
                continue
            weight = np.asarray(problem.weight, np.float64)
            energy = problem.energy
            if energy is None:
                energy = float(np.square(weight).sum())
            for index in [index for index, names in waiting.items() if layer.name in names]:
                if index not in started:
                    started[index] = Evidence.empty(readers.channels, groups[index])
                started[index].add(
                    weight, problem.metrics, energy, units, with_inverses=with_inverses
                )
                waiting[index].remove(layer.name)
            kept[layer.name] = replace(problem, metrics=())
        del problem  # its metrics are large
        yield from finished()
