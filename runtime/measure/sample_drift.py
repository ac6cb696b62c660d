"""How far the outputs on each sample alone moved.

Owns: rows of runs told apart. Not here: the figures of all samples together (see `drift`), and
those of layers (see `probes.layer_drift`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from onnxslim.analysis.output_kinds import OutputKinds
from onnxslim.analysis.token_inputs import PaddingMask
from onnxslim.details import SampleDrift
from onnxslim.records import OutputKind
from onnxslim.runtime.measure.drift import DriftMeter, is_floating
from onnxslim.runtime.measure.padding import positions_that_count
from onnxslim.runtime.samples.stream import Sample
from onnxslim.runtime.session import Feeds, Outputs, Session


def sample_drifts(
    session: Session,
    runs: Iterable[Sample],
    references: Sequence[Outputs],
    kinds: OutputKinds,
    padding: PaddingMask | None,
) -> Iterator[SampleDrift]:
    """The drift of each sample, in order; of its outputs that of the one with the least SQNR.

    Args:
        session: the candidate.
        runs: samples, several in a run where the model takes batches.
        references: outputs of the original on the same runs.
        kinds: of the outputs, by name.
        padding: the input that says which positions count.
    """
    number = 0
    for sample, whole in zip(runs, references, strict=True):
        outputs, reference = session.run(sample.feeds), session.narrowed(whole)
        for row in range(sample.rows):
            number += 1
            ref, new, feeds = (
                _row(found, row, sample.rows) for found in (reference, outputs, sample.feeds)
            )
            drift = _farthest(ref, new, feeds, number, kinds, padding)
            if drift is not None:
                yield drift


def _row(arrays: Mapping[str, np.ndarray], row: int, rows: int) -> Outputs:
    """The arrays of one sample of a run; those without an axis of samples whole."""
    is_split = rows > 1
    return {
        name: array[row : row + 1] if is_split and array.shape[:1] == (rows,) else array
        for name, array in arrays.items()
    }


def _farthest(
    reference: Outputs,
    outputs: Outputs,
    feeds: Feeds,
    number: int,
    kinds: OutputKinds,
    padding: PaddingMask | None,
) -> SampleDrift | None:
    """None where no output of floats has the same shape in both."""
    counts = positions_that_count(padding, feeds)
    found = []
    for name, ref in reference.items():
        if not is_floating(ref.dtype) or outputs[name].shape != ref.shape or not ref.size:
            continue
        meter = DriftMeter(kinds.get(name, OutputKind.VALUES))
        meter.update(ref, outputs[name], counts)
        drift = meter.result()
        found.append(SampleDrift(number, name, drift.sqnr_db, drift.max_abs))
    return min(found, key=lambda drift: drift.sqnr_db, default=None)
