"""Sample inputs as a stream of runs, one by one or in batches.

Owns: how samples are joined into batches. Not here: where they come from (see `sources`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.runtime.session import Feeds
from onnxslim.services.progress import Progress


@dataclass(frozen=True)
class Sample:
    """The inputs of one run.

    Attributes:
        rows: number of samples in the run.
        labels: one entry for each sample, where the source has labels.
    """

    feeds: Feeds
    rows: int = 1
    labels: np.ndarray | None = None


class Samples:
    """Samples that can be iterated any number of times.

    Attributes:
        name: of the source, for messages.
        count: number of samples; None where only reading them all would tell.
        batchable: whether the model's declared shapes allow several samples in one run.
        remark: how the source was understood, where that is not plain.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Iterator[Sample]],
        count: int | None,
        *,
        batchable: bool,
        remark: str = "",
    ) -> None:
        self.name, self.count, self.batchable, self.remark = name, count, batchable, remark
        self._read = read

    def __iter__(self) -> Iterator[Sample]:
        return self._read()

    def one_by_one(self) -> Samples:
        """The same samples, of which no run takes several."""
        return Samples(self.name, self._read, self.count, batchable=False, remark=self.remark)

    def told(self, progress: Progress) -> Samples:
        """The same samples; each way through them is a step of `progress`."""

        def read() -> Iterator[Sample]:
            with progress.step("running on", self.count, "samples") as step:
                for sample in self:
                    yield sample
                    step.advance(sample.rows)

        return Samples(self.name, read, self.count, batchable=self.batchable, remark=self.remark)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Sample]:
        """Runs of up to `size` samples (1 if not batchable), from the first `limit` samples."""
        group: list[Sample] = []
        room = size = size if self.batchable else 1
        for sample in first_rows(self, limit):
            if group and not can_join(group[0], sample, room):
                yield joined(group)
                group, room = [], size
            group.append(sample)
            room -= sample.rows
        if group:
            yield joined(group)


def counted(count: int) -> str:
    """`1 sample`, `2 samples`."""
    return f"{count} sample{'' if count == 1 else 's'}"


def first_rows(samples: Iterable[Sample], limit: int | None) -> Iterator[Sample]:
    """The first samples, at most `limit` rows in all; at least one sample."""
    rows = 0
    for sample in samples:
        if limit is not None and rows and rows + sample.rows > limit:
            return
        rows += sample.rows
        yield sample


def in_groups(samples: Iterable[Sample], size: int) -> Iterator[Sample]:
    """Single samples joined to runs of `size`, a remainder dropped; larger ones as they are."""
    group: list[Sample] = []
    for sample in samples:
        if sample.rows >= size:
            yield sample
            continue
        group.append(sample)
        if len(group) == size:
            yield joined(group)
            group = []


def can_join(first: Sample, sample: Sample, room: int | None = None) -> bool:
    """Whether two samples fit into one run that has `room` for so many more rows."""
    if (room is not None and sample.rows > room) or (sample.labels is None) != (
        first.labels is None
    ):
        return False
    shapes = {name: array.shape[1:] for name, array in first.feeds.items()}
    return all(array.shape[1:] == shapes[name] for name, array in sample.feeds.items())


def joined(group: Sequence[Sample]) -> Sample:
    """One run of all samples of a group."""
    if len(group) == 1:
        return group[0]
    feeds = {name: np.concatenate([item.feeds[name] for item in group]) for name in group[0].feeds}
    labels = [item.labels for item in group if item.labels is not None]
    return Sample(feeds, sum(s.rows for s in group), np.concatenate(labels) if labels else None)
