"""Ranges and histograms of tensors, streamed from calibration samples.

One sweep over the samples observes all tensors where the outputs of a run are small enough,
otherwise several sweeps do; a run takes as many samples as fit beside them. No activation outlives
its run: a tensor is summarised by its range and a histogram of fixed size. The range covers all
values but those that a Softmax makes zero (see `analysis.softmax_reach`). The histogram of a large
tensor counts evenly spaced values, a few million in all, because counting all of them would take
longer than computing them.

Owns: how many values are used. Not here: the histogram itself (see `services.observations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, inf, isfinite, prod
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.analysis.softmax_reach import SoftmaxReach, softmax_reach
from onnxslim.errors import UsageError
from onnxslim.graph.ir import Constant, node_label, subgraphs_of, walk_graphs
from onnxslim.io.model import Model
from onnxslim.pipeline.suggest import did_you_mean
from onnxslim.records import Skip
from onnxslim.runtime.measure.stopwatch import SessionStopwatch
from onnxslim.runtime.probes.exposed import ExposedTensors, read
from onnxslim.runtime.samples.stream import Sample
from onnxslim.services.observations import Histogram, Observation

Batches = Callable[[int], Iterable[Sample]]

_MAX_ROWS: Final = 256  # samples of a run
_BATCH_BYTES: Final = 16 << 20  # outputs of a run that takes several samples
_SWEEP_BYTES: Final = 192 << 20  # outputs of a run of one sample; the session holds as much
_VALUES: Final = 1 << 22  # values of a tensor to count over all samples, about
_MIN_VALUES: Final = 1 << 13  # values of a tensor to count in one sample, where it has as many


def stream_observations(
    model: Model,
    batches: Batches,
    tensors: Sequence[str],
    *,
    count: int | None = None,
    threads: int | None = None,
    sweep_bytes: int = _SWEEP_BYTES,
) -> Iterator[Observation | Skip]:
    """Stream ranges and histograms of the named tensors of the main graph.

    Args:
        model: whose graph holds them.
        batches: starts a pass over the samples, with up to the given number in one run.
        tensors: names, graph inputs included.
        count: number of samples, where known.
        threads: see `open_session`.
        sweep_bytes: the most bytes of outputs for one sample in one sweep.

    Yields:
        An observation for each distinct name, or why there is none, sweep by sweep.

    Raises:
        UsageError: `tensors` names a tensor that does not exist.
        RuntimeFailure: onnxruntime refuses the model or fails on a sample.
    """
    exposed = ExposedTensors(model)
    known = {tensor.name: tensor for tensor in _tensors(exposed.graph)}
    wanted: list[gs.Tensor] = []
    for name in dict.fromkeys(tensors):
        why = _why_not(name, known, exposed.graph)
        if why is None:
            wanted.append(known[name])
        else:
            yield Skip(name, why)
    cap = max(_MIN_VALUES, _VALUES // max(count or _VALUES, 1))
    for sweep in _sweeps(model, batches, wanted, sweep_bytes, threads) if wanted else ():
        yield from _observed(exposed, sweep, batches, cap, threads)


def _why_not(name: str, known: Mapping[str, gs.Tensor], graph: gs.Graph) -> str | None:
    tensor = known.get(name)
    if tensor is None:
        return _hidden(name, graph, known)
    if isinstance(tensor, Constant):
        return "it is constant"
    if tensor.type != "tensor_type":
        return "it is no dense tensor"
    if not is_float(tensor.dtype):
        kind = "unknown" if tensor.dtype is None else str(np.dtype(tensor.dtype))
        return f"its type is {kind}, and ranges are of floating point"
    return None


def _hidden(name: str, graph: gs.Graph, known: Iterable[str]) -> str:
    for node in graph.nodes:
        for body in subgraphs_of(node):
            for inner in walk_graphs(body):
                if any(tensor.name == name for tensor in _tensors(inner)):
                    return f"it lies in a body of the {node.op} `{node_label(node)}`"
    raise UsageError(f"The model has no tensor `{name}`.{did_you_mean(name, known)}")


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from (tensor for tensor in (*node.inputs, *node.outputs) if tensor.name)


# ---------------------------------------------------------------------------- sweeps


@dataclass(frozen=True)
class _ObserverSweep:
    """Tensors that one sweep observes, and the number of samples in each of its runs."""

    tensors: tuple[gs.Tensor, ...]
    rows: int


def _sweeps(
    model: Model,
    batches: Batches,
    wanted: Sequence[gs.Tensor],
    sweep_bytes: int,
    threads: int | None,
) -> list[_ObserverSweep]:
    """Sweeps of neighbouring tensors, in graph order.

    Each sweep recomputes the nodes before its tensors, so neighbours share most of that work.
    """
    first = next(iter(batches(1)))
    shapes = SessionStopwatch(first.feeds, threads=threads).shapes(model)
    sweeps: list[_ObserverSweep] = []
    group: list[gs.Tensor] = []
    taken = 0
    for tensor in wanted:
        # a tensor without a known shape counts as one element
        size = prod(shapes.get(tensor.name, ())) * np.dtype(tensor.dtype).itemsize // first.rows
        if group and taken + size > sweep_bytes:
            sweeps.append(_sweep(group, taken))
            group, taken = [], 0
        group.append(tensor)
        taken += size
    return [*sweeps, _sweep(group, taken)]


def _sweep(group: Sequence[gs.Tensor], taken: int) -> _ObserverSweep:
    return _ObserverSweep(tuple(group), min(max(1, _BATCH_BYTES // max(taken, 1)), _MAX_ROWS))


def _observed(
    exposed: ExposedTensors, sweep: _ObserverSweep, batches: Batches, cap: int, threads: int | None
) -> Iterator[Observation | Skip]:
    answers = {id(tensor) for tensor in exposed.graph.outputs}
    seen = [
        _TensorSummary(
            tensor.name,
            exposed.expose_main(tensor),
            cap,
            None if id(tensor) in answers else softmax_reach(tensor),
        )
        for tensor in sweep.tensors
    ]
    ends = [exposed.outputs[item.key] for item in seen if item.key in exposed.outputs]
    session = exposed.open(exposed.segment(ends, ()), threads=threads)
    try:
        first = 0
        for sample in batches(sweep.rows):
            outputs = {} if session is None else session.run(sample.feeds)
            for item in seen:
                item.add(read(item.key, sample.feeds, outputs), sample.rows, first)
            first += sample.rows
    finally:
        if session is not None:
            session.close()
    for item in seen:
        yield item.result()


# ---------------------------------------------------------------------------- one tensor


@dataclass
class _TensorSummary:
    """Range and histogram of one tensor, accumulated over samples.

    Attributes:
        cap: how many values of one sample are counted, about.
        reach: how far values matter, where a Softmax alone reads the tensor.
        lows, highs: sums of the least and of the greatest value of each sample.
    """

    tensor: str
    key: str
    cap: int
    reach: SoftmaxReach | None = None
    least: float = inf
    most: float = -inf
    lows: float = 0.0
    highs: float = 0.0
    samples: int = 0
    histogram: Histogram = field(default_factory=Histogram.empty)
    count: int = 0
    zeros: int = 0
    is_finite: bool = True

    def add(self, array: np.ndarray, rows: int, first: int) -> None:
        """Add a run of `rows` samples, the first of which has the number `first`."""
        if not array.size or not self.is_finite:
            return
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32)
        if self.reach is not None:
            array = self.reach.clipped(array)
        parts = rows if array.ndim and array.shape[0] % rows == 0 else 1
        values = array.reshape(parts, -1)
        low, high = values.min(axis=1), values.max(axis=1)
        least, most = float(low.min()), float(high.max())
        if not (isfinite(least) and isfinite(most)):  # a NaN shows in both
            self.is_finite = False
            return
        self.least, self.most = min(self.least, least), max(self.most, most)
        self.lows += float(low.mean(dtype=np.float64)) * rows
        self.highs += float(high.mean(dtype=np.float64)) * rows
        self.samples += rows
        self._count(values, first)

    def _count(self, values: np.ndarray, first: int) -> None:
        step = _step(values.shape[1], self.cap)
        chosen = values if step == 1 else values[:, first % step :: step]
        other = chosen[chosen != 0]
        self.histogram = self.histogram.plus(other)
        self.count += chosen.size
        self.zeros += chosen.size - other.size

    def result(self) -> Observation | Skip:
        if not self.is_finite:
            return Skip(self.tensor, "its values are not finite on calibration data")
        if not self.count:
            return Observation(self.tensor, 0.0, 0.0, 0.0, 0.0, self.histogram, 0, 0.0)
        return Observation(
            self.tensor,
            self.least,
            self.most,
            self.lows / self.samples,
            self.highs / self.samples,
            self.histogram,
            self.count,
            self.zeros / self.count,
        )


def _step(size: int, cap: int) -> int:
    """The distance between counted values, coprime to `size`.

    It then has no factor in common with the row length or the number of channels, so that all rows
    and channels are sampled alike.
    """
    step = max(1, size // cap)
    while gcd(step, size) > 1:
        step += 1
    return step
