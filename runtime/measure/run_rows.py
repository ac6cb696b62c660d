"""Whether one run may take several samples, and how many, so that activations stay within a bound.

A run of several samples costs fewer calls, which matters to small networks alone; the memory that
it takes is that of all its samples together. Declared shapes may leave a first axis open that does
not count samples: a product behind a Transpose pins it, a DynamicQuantizeLinear or a mean over all
rows mixes them. So a trial decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from onnxslim.analysis.activation_bytes import all_bytes, live_bytes
from onnxslim.errors import RuntimeFailure
from onnxslim.io.model import Model
from onnxslim.records import Fidelity
from onnxslim.runtime.measure.drift import DriftMeter
from onnxslim.runtime.measure.promise import breach
from onnxslim.runtime.measure.stopwatch import SessionStopwatch
from onnxslim.runtime.samples.stream import Sample, Samples, can_join, first_rows, joined
from onnxslim.runtime.session import Session

RUN_BYTES: Final = 32 << 20  # activations alive at once in a run that takes several samples
EXPOSED_BYTES: Final = 128 << 20  # all activations of such a run, where inner ones are returned
_TRIED: Final = 64  # samples among which two neighbours of equal sizes are looked for


def as_they_run(session: Session, samples: Samples) -> Samples:
    """The samples, one to a run unless a run of two gives the outputs of two runs.

    Raises:
        RuntimeFailure: the model does not run on a single sample.
    """
    if not samples.batchable:
        return samples
    tried = pairwise(first_rows(samples, _TRIED))
    pair = next(([a, b] for a, b in tried if can_join(a, b)), None)
    if pair is None:
        return samples.one_by_one()
    alone = [session.run(sample.feeds) for sample in pair]
    try:
        together = session.run(joined(pair).feeds)
    except RuntimeFailure:
        return samples.one_by_one()
    parts = [(found, [run[name] for run in alone]) for name, found in together.items()]
    parts = [(found, own) for found, own in parts if not _is_constant(found, own)]
    if parts and all(_is_stack(found, own) for found, own in parts):
        return samples
    return samples.one_by_one()


def _is_constant(together: np.ndarray, alone: Sequence[np.ndarray]) -> bool:
    """Whether an output is the same whatever the samples, and so no matter of theirs."""
    return all(part.shape == together.shape and (part == together).all() for part in alone)


def _is_stack(together: np.ndarray, alone: Sequence[np.ndarray]) -> bool:
    if any(part.ndim == 0 or part.shape[1:] != together.shape[1:] for part in alone):
        return False
    expected = np.concatenate(alone)
    if expected.shape != together.shape:
        return False
    meter = DriftMeter()
    meter.update(expected, together)
    return breach("", meter, expected.dtype, Fidelity.CLOSE) is None


def rows_within(model: Model, sample: Sample, *, exposed: bool = False) -> int:
    """Number of samples, at least one, whose activations fit into `RUN_BYTES`.

    Args:
        model: that runs them.
        sample: one of them; its sizes stand for all.
        exposed: whether a run may return any inner tensors, which then live to its end: all
            activations also fit into `EXPOSED_BYTES`.

    Raises:
        RuntimeFailure: onnxruntime refuses the model or fails on the sample.
    """
    shapes = SessionStopwatch(sample.feeds).shapes(model)
    rows = RUN_BYTES * sample.rows / max(live_bytes(model.graph, shapes), 1)
    if exposed:
        rows = min(rows, EXPOSED_BYTES * sample.rows / max(all_bytes(model.graph, shapes), 1))
    return max(1, int(rows))
