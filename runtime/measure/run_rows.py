"""How many samples one run may take, so that its activations stay within a bound.

A run of several samples costs fewer calls, which matters to small networks alone; the memory that
it takes is that of all its samples together.
"""

from __future__ import annotations

from typing import Final

from onnxslim.analysis.activation_bytes import live_bytes
from onnxslim.io.model import Model
from onnxslim.runtime.measure.stopwatch import SessionStopwatch
from onnxslim.runtime.samples.stream import Sample

RUN_BYTES: Final = 32 << 20  # activations of a run that takes several samples


def rows_within(model: Model, sample: Sample) -> int:
    """Number of samples, at least one, whose activations fit into `RUN_BYTES`.

    Args:
        model: that runs them.
        sample: one of them; its sizes stand for all.

    Raises:
        RuntimeFailure: onnxruntime refuses the model or fails on the sample.
    """
    shapes = SessionStopwatch(sample.feeds).shapes(model)
    a_row = live_bytes(model.graph, shapes) / sample.rows
    return max(1, int(RUN_BYTES / max(a_row, 1)))
