"""The samples that models are verified and timed on: the user's, or seeded ones.

Two sets: *probes*, kept in memory, for every lossless step, as many as run in about two seconds;
*wide*, streamed, for lossy steps, whose drift is a statistic.

Owns: how many samples are used, and how many in one run. Not here: where samples come from (see
`samples.sources` and `samples.seeded`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from onnxslim.analysis.input_demands import InputDemands
from onnxslim.errors import RuntimeFailure, UsageError
from onnxslim.graph.ir import node_label, walk_graphs
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.limits import MOST_RUN_SECONDS
from onnxslim.runtime.measure.run_rows import as_they_run, rows_within
from onnxslim.runtime.samples.seeded import find_inputs, timing_samples
from onnxslim.runtime.samples.stream import Sample, Samples, counted, first_rows
from onnxslim.runtime.session import Feeds, Outputs, Session

WIDE: Final = 256
PROBE_COUNTS: Final = (256, 64, 16, 4)
PROBE_SECONDS: Final = 2.0
FEED_BYTES: Final = 64 << 20  # inputs of all probes
OUTPUT_BYTES: Final = 256 << 20  # all reference outputs of one baseline
BATCH: Final = 16
BATCH_BYTES: Final = 32 << 20
TOUR: Final = 64  # samples to time a model on whose run time depends on the sample
TOUR_SECONDS: Final = 0.3
FEWEST_ON_TOUR: Final = 8
_RECURRENT: Final = ("LSTM", "GRU")


@dataclass(frozen=True)
class Workload:
    """Inputs to run models on.

    Attributes:
        single: one sample, to time models on.
        description: the text of `verified_on`.
        samples: the source of the wide set; None where the probes are all samples.
        wide_rows: number of samples of the wide set.
        batch: number of samples in one run.
        tour: single samples, to time models that branch on.
        outputs: of the original on each of the probes, where they are known already.
    """

    probes: tuple[Sample, ...]
    single: Feeds
    description: str
    samples: Samples | None = None
    wide_rows: int = 0
    batch: int = 1
    tour: tuple[Feeds, ...] = ()
    outputs: tuple[Outputs, ...] = ()

    @property
    def has_wide(self) -> bool:
        """Whether the wide set differs from the probes."""
        return self.samples is not None

    def runs(self, *, wide: bool, alone: bool) -> Iterable[Sample]:
        """The runs of the wide set or the probes; with `alone`, each sample as a run of its own."""
        runs = self.wide() if wide else self.probes
        return _one_by_one(runs) if alone and self.batch > 1 else runs

    def wide(self) -> Iterable[Sample]:
        """The runs of the wide set, read again from the source."""
        if self.samples is None:
            return self.probes
        return self.samples.batches(self.batch, self.wide_rows)


def from_samples(
    session: Session, samples: Samples, role: str, model: Model | None = None
) -> Workload:
    """A workload of the user's samples, as many as time and memory of the original model allow.

    Args:
        session: the original model.
        samples: of the user.
        role: `calibration` or `evaluation`.
        model: the same model, whose activations bound the samples of one run.

    Raises:
        UsageError: they cannot be read, or the model does not run on them.
    """
    first = next(iter(samples))
    try:
        outputs, seconds = _timed(session, first.feeds)
        batch = batch_size(session, samples, model)
    except RuntimeFailure as error:
        why = session.failure_as_written(first.feeds) or error
        raise UsageError(
            f"The model does not run on the {role} data ({samples.name}): {why}"
        ) from None
    wide = min(WIDE, _rows_within(OUTPUT_BYTES, outputs.values(), first.rows))
    probe = min(wide, _probe_count(seconds / first.rows, first))
    probes = tuple(samples.batches(batch, probe))
    used = sum(item.rows for item in probes)
    tour = _tour(seconds / first.rows, samples)
    if samples.count is not None:
        wide = min(wide, samples.count)
    if used < probe or used >= wide:
        text = f"{role}: {_share(used, samples.count)}"
        return Workload(probes, first.feeds, text, batch=batch, tour=tour)
    up_to = "up to " if samples.count is None else ""
    text = f"{role}: {up_to}{_share(wide, samples.count)} ({used} of them for lossless steps)"
    return Workload(probes, first.feeds, text, samples, wide, batch, tour)


def from_seed(
    session: Session,
    seed: int,
    input_shapes: Mapping[str, Sequence[int]] | None,
    demands: InputDemands,
    model: Model | None = None,
) -> tuple[Workload | None, str]:
    """A workload of seeded samples that the model accepts; None and why, where there are none.

    Args:
        session: the model.
        seed: seed of the values.
        input_shapes: shape by input name, of the user.
        demands: sizes and roles that the graph gives its inputs.
        model: of the session, where it is to be timed: the samples to time it on are then of a size
            that people use.

    Raises:
        UsageError: `input_shapes` contradicts the model.
    """
    run = partial(session.run, seconds=MOST_RUN_SECONDS)
    found = find_inputs(session.inputs, run, seed=seed, input_shapes=input_shapes, demands=demands)
    if found.failure is not None:
        why = None if found.refused is None else session.failure_as_written(found.refused)
        return None, why or found.failure
    probes = tuple(Sample(feeds) for feeds in found.samples)
    text = f"{found.description}, no calibration data given"
    tour = found.samples
    if model is not None:
        tour = timing_samples(
            model,
            session.inputs,
            run,
            found,
            seed=seed,
            input_shapes=input_shapes,
            demands=demands,
        )
    return Workload(probes, tour[0], text, tour=tour, outputs=found.outputs), ""


def why_not_run(model: Model) -> str | None:
    """Why the model must not be run at all; None for nearly all models.

    onnxruntime ends the whole process at an LSTM or GRU whose input is empty.
    """
    graphs = list(walk_graphs(model.graph))
    if not any(node.op in _RECURRENT for graph in graphs for node in graph.nodes):
        return None
    copy = model.clone()
    infer_shapes(copy)
    for graph in walk_graphs(copy.graph):
        for node in graph.nodes:
            if node.op in _RECURRENT and 0 in (node.inputs[0].shape or ()):
                return (
                    f"node `{node_label(node)}` ({node.op}) reads an empty sequence or batch, on "
                    "which onnxruntime ends the process."
                )
    return None


def sizes_text(feeds: Feeds) -> str:
    """The inputs of a run with their sizes: `ids 1x128, mask 1x128`."""
    sizes = {name: "x".join(map(str, np.shape(array))) for name, array in feeds.items()}
    return ", ".join(f"{name} {size}".rstrip() for name, size in sizes.items()) or "no inputs"


def is_branching(model: Model) -> bool:
    """Whether the nodes that run may depend on the sample, and the latency with them."""
    nodes = (node for graph in walk_graphs(model.graph) for node in graph.nodes)
    return any(node.op in ("If", "Loop") for node in nodes)


def batch_size(session: Session, samples: Samples, model: Model | None = None) -> int:
    """Number of samples for one run: more than one only where the outputs stay the same.

    Args:
        session: runs the samples.
        samples: whose inputs bound the samples of one run.
        model: of the session, whose activations bound them too.

    Raises:
        RuntimeFailure: the model does not run on a single sample.
    """
    if not as_they_run(session, samples).batchable:
        return 1
    first = next(iter(samples))
    rows = max(1, min(BATCH, _rows_within(BATCH_BYTES, first.feeds.values(), first.rows)))
    return rows if model is None or rows == 1 else min(rows, rows_within(model, first))


def _tour(seconds: float, samples: Samples) -> tuple[Feeds, ...]:
    """The first samples, as many as run in `TOUR_SECONDS`."""
    first = next(iter(samples))
    in_memory = _rows_within(FEED_BYTES, first.feeds.values(), first.rows)
    fitting = min(TOUR, in_memory, int(TOUR_SECONDS / max(seconds, 1e-9)))
    rows = max(FEWEST_ON_TOUR, fitting) * first.rows
    return tuple(sample.feeds for sample in first_rows(samples, rows))


def _one_by_one(runs: Iterable[Sample]) -> Iterator[Sample]:
    for run in runs:
        for row in range(run.rows):
            part = slice(row, row + 1)
            feeds = {name: array[part] for name, array in run.feeds.items()}
            yield Sample(feeds, 1, None if run.labels is None else run.labels[part])


def _timed(session: Session, feeds: Feeds) -> tuple[Outputs, float]:
    session.run(feeds)  # the first run also allocates memory
    start = time.perf_counter()
    outputs = session.run(feeds)
    return outputs, time.perf_counter() - start


def _probe_count(seconds: float, sample: Sample) -> int:
    """Number of probes, in coarse steps: a slightly busier machine then uses the same ones."""
    in_memory = _rows_within(FEED_BYTES, sample.feeds.values(), sample.rows)
    fitting = min(PROBE_SECONDS / max(seconds, 1e-9), in_memory)
    return next((count for count in PROBE_COUNTS if count <= fitting), PROBE_COUNTS[-1])


def _rows_within(limit: int, arrays: Iterable[np.ndarray], rows: int) -> int:
    a_row = sum(array.nbytes for array in arrays) / rows
    return max(PROBE_COUNTS[-1], int(limit / max(a_row, 1)))


def _share(used: int, count: int | None) -> str:
    if count is None or count == used:
        return counted(used)
    return f"{used} of {counted(count)}"
