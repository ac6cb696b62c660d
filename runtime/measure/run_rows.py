"""How many samples one run may take, so that its activations stay within a bound.

A run of several samples costs fewer calls, which matters to small networks alone; the memory that
it takes is that of all its samples together.
"""

from __future__ import annotations

from typing import Final

from onnxslim.analysis.activation_bytes import all_bytes, live_bytes
from onnxslim.io.model import Model
from onnxslim.runtime.measure.stopwatch import SessionStopwatch
from onnxslim.runtime.samples.stream import Sample

RUN_BYTES: Final = 32 << 20  # activations alive at once in a run that takes several samples
EXPOSED_BYTES: Final = 128 << 20  # all activations of such a run, where inner ones are returned


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
