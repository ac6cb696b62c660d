"""The samples of a training run: kept on disk with what the teachers say, dealt into batches.

A fifth is held back, the same as `CalibrationRuns` holds back. The order of an epoch is a function
of the seed and its number, so that a run can be repeated, and continued.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy.special import logsumexp

from onnxslim.io.model import Model
from onnxslim.records import OutputKind
from onnxslim.runtime.measure.run_rows import as_they_run, rows_within
from onnxslim.runtime.samples.spool import Spool
from onnxslim.runtime.samples.stream import Sample, Samples
from onnxslim.runtime.session import Feeds, open_session
from onnxslim.services.progress import Progress

_FOLDS: Final = 5
_HELD: Final = 1  # as in `calibration_runs`
_SUM_TOLERANCE: Final = 1e-2  # how far the sum of probabilities may be from 1
_ROWS: Final = 128  # samples of a run of the teacher
_MOST_INNER: Final = 1 << 30  # bytes on the disk
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainingItem:
    """Where the arrays of one sample are kept.

    Attributes:
        feeds, outputs: numbers in the spool, by name.
        shapes: of the inputs: samples of equal ones can be joined.
        rows: number of samples that the item holds.
        labels: one for each of them, where there are any.
        inner: numbers of what `keep_inner` kept, by name.
    """

    feeds: dict[str, int]
    outputs: dict[str, int]
    shapes: tuple[tuple[int, ...], ...]
    rows: int
    labels: np.ndarray | None
    inner: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Samples that run together.

    Attributes:
        feeds: inputs by name.
        outputs: of the teacher, by name.
        rows: number of samples.
        labels: one for each of them, where there are any.
        inner: tensors of the student that training does not change, by name.
    """

    feeds: Arrays
    outputs: Arrays
    rows: int
    labels: np.ndarray | None
    inner: Arrays = field(default_factory=dict)


class TrainingSet:
    """Samples and the averaged outputs of teachers, in a temporary file.

    Args:
        samples: of a user; the first run through them is made here.
        teachers: models of one signature.
        kinds: of the outputs, by name.
        threads: see `open_session`.
        progress: what is being done.
    """

    def __init__(
        self,
        samples: Samples,
        teachers: Sequence[Model],
        *,
        kinds: Mapping[str, OutputKind],
        threads: int | None,
        progress: Progress,
    ) -> None:
        self._kinds = kinds
        self._spool = Spool()
        items: list[TrainingItem] = []
        self._sessions = [open_session(model, threads=threads) for model in teachers]
        samples = as_they_run(self._sessions[0], samples)
        self._joins = samples.batchable
        rows = 1
        if samples.batchable:
            first = next(iter(samples))
            rows = min(_ROWS, rows_within(teachers[0], first, exposed=False))
        with progress.step("asking the teacher on", samples.count, "samples") as step:
            for sample in samples.batches(rows):
                items += self._kept(sample, self.taught(sample.feeds))
                step.advance(sample.rows)
        held = [item for number, item in enumerate(items) if number % _FOLDS == _HELD]
        rest = [item for number, item in enumerate(items) if number % _FOLDS != _HELD]
        self.held = held or items
        self.items = rest if held else items

    @property
    def samples(self) -> int:
        """How many samples there are to train on."""
        return sum(item.rows for item in self.items)

    @property
    def is_labelled(self) -> bool:
        """Whether all samples have labels."""
        return all(item.labels is not None for item in (*self.items, *self.held))

    def epoch(self, batch: int, seed: int, number: int) -> list[list[list[TrainingItem]]]:
        """The steps of an epoch: of each, the groups of samples that run together."""
        rng = np.random.default_rng([seed, number])
        order = [self.items[place] for place in rng.permutation(len(self.items))]
        groups = list(self._groups(order, batch))
        groups = [groups[place] for place in rng.permutation(len(groups))]
        steps: list[list[list[TrainingItem]]] = [[]]
        rows = 0
        for group in groups:
            own = sum(item.rows for item in group)
            if rows and rows + own > batch:
                steps.append([])
                rows = 0
            steps[-1].append(group)
            rows += own
        return [step for step in steps if step]

    def held_groups(self, batch: int) -> list[list[TrainingItem]]:
        """The samples held back, in groups that run together."""
        return list(self._groups(self.held, batch))

    def batch(self, group: Sequence[TrainingItem]) -> Batch:
        """The arrays of samples that run together."""
        labels = [item.labels for item in group if item.labels is not None]
        return Batch(
            self._joined([item.feeds for item in group]),
            self._joined([item.outputs for item in group]),
            sum(item.rows for item in group),
            np.concatenate(labels) if len(labels) == len(group) else None,
            self._joined([item.inner for item in group]),
        )

    def keep_inner(self, computed: Callable[[Arrays], Arrays], progress: Progress) -> bool:
        """Keep what `computed` makes of the inputs of each sample, for `Batch.inner`.

        Returns:
            Whether it was kept: not where it cannot be taken apart by samples, has other sizes for
            inputs of equal ones, or takes more than 1 GiB.
        """
        own = list({id(item): item for item in (*self.items, *self.held)}.values())
        rows = sum(item.rows for item in own)
        sizes: dict[object, object] = {}
        groups = list(self._groups(own, _ROWS))
        for group in progress.over("running layers that stay as they are", groups, "batches"):
            batch = self.batch(group)
            found = computed(batch.feeds)
            shapes = {name: array.shape for name, array in found.items()}
            nbytes = sum(array.nbytes for array in found.values()) * rows // batch.rows
            inner = tuple(shape[1:] for shape in shapes.values())
            is_apart = all(shape[:1] == (batch.rows,) for shape in shapes.values())
            is_same = sizes.setdefault(group[0].shapes, inner) == inner
            if not (found and is_apart and is_same and nbytes <= _MOST_INNER):
                for item in own:
                    item.inner.clear()
                return False
            first = 0
            for item in group:
                cut = slice(first, first + item.rows)
                item.inner.update({n: self._keep(array[cut]) for n, array in found.items()})
                first += item.rows
        return True

    def taught(self, feeds: Feeds) -> Arrays:
        """What the teachers say of other samples."""
        found = [session.run(feeds) for session in self._sessions]
        if len(found) == 1:
            return dict(found[0])
        return {
            name: averaged([outputs[name] for outputs in found], self._kinds.get(name))
            for name in found[0]
        }

    def dismiss(self) -> None:
        """Close the teachers, which take as much memory as they have weights."""
        for session in self._sessions:
            session.close()

    def close(self) -> None:
        """Delete what was kept."""
        self._spool.close()
        self.dismiss()

    # ------------------------------------------------------------------ inside

    def _joined(self, numbers: Sequence[Mapping[str, int]]) -> Arrays:
        """The arrays of several samples as one, by name."""
        found: Arrays = {}
        for name in numbers[0]:
            arrays = [self._spool[own[name]] for own in numbers]
            found[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return found

    def _groups(self, items: Sequence[TrainingItem], batch: int) -> Iterator[list[TrainingItem]]:
        """Samples of equal shapes, up to `batch` together, in the order of their first ones."""
        open_groups: dict[tuple[tuple[int, ...], ...], list[TrainingItem]] = {}
        for item in items:
            if not self._joins:
                yield [item]
                continue
            group = open_groups.setdefault(item.shapes, [])
            group.append(item)
            if sum(each.rows for each in group) >= batch:
                yield open_groups.pop(item.shapes)
        yield from open_groups.values()

    def _kept(self, sample: Sample, outputs: Arrays) -> Iterator[TrainingItem]:
        """The items of a run: one for each sample where the arrays can be taken apart."""
        apart = self._joins and all(
            array.shape[:1] == (sample.rows,)
            for array in (*sample.feeds.values(), *outputs.values())
        )
        for row in range(sample.rows) if apart else (None,):
            cut = slice(None) if row is None else slice(row, row + 1)
            feeds = {name: _cut(array, cut) for name, array in sample.feeds.items()}
            yield TrainingItem(
                {name: self._keep(array) for name, array in feeds.items()},
                {name: self._keep(_cut(array, cut)) for name, array in outputs.items()},
                tuple(array.shape[1:] for array in feeds.values()),
                sample.rows if row is None else 1,
                None if sample.labels is None else sample.labels[cut],
            )

    def _keep(self, array: np.ndarray) -> int:
        self._spool.append(array)
        return len(self._spool) - 1


def _cut(array: np.ndarray, rows: slice) -> np.ndarray:
    return array[rows] if array.ndim else array


def averaged(values: Sequence[np.ndarray], kind: OutputKind | None) -> np.ndarray:
    """One output of several teachers: of scores the logits of the mean of their probabilities."""
    first = values[0]
    if first.dtype.kind != "f":
        return first
    wide = np.stack([array.astype(np.float64) for array in values])
    sums = wide.sum(-1) if wide.ndim > 1 else wide
    are_shares = bool(wide.min() >= 0 and np.abs(sums - 1).max() < _SUM_TOLERANCE)
    if kind is not None and kind.is_scores and wide.shape[-1] > 1 and not are_shares:
        logs = wide - logsumexp(wide, axis=-1, keepdims=True)
        return np.asarray(logsumexp(logs, axis=0) - np.log(len(values)), first.dtype)
    return np.asarray(wide.mean(0), first.dtype)
