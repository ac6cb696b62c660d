"""A stopwatch whose times are multiply-accumulates: decisions by time become testable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
import pytest

from onnxslim.analysis.layer_models import count_macs
from onnxslim.graph.dims import static_shape
from onnxslim.graph.ir import Variable
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.stats import measure_stats
from onnxslim.report import Latency, LatencyPair
from onnxslim.runtime.measure.verify import RuntimeProver
from onnxslim.services.stopwatch import Stopwatch

PER_MS = 1e6


class FakeStopwatch:
    """Implements `Stopwatch`; a million multiply-accumulates take a millisecond.

    Args:
        spread: half the width of the interval around a ratio.
        symbol: size of every open dimension.
    """

    def __init__(self, spread: float = 0.01, symbol: int = 1) -> None:
        self.spread, self.symbol = spread, symbol
        self.asked: list[int] = []

    def shapes(self, model: Model) -> Mapping[str, tuple[int, ...]]:
        copy = model.clone()
        for tensor in copy.graph.inputs:
            tensor.shape = [s if isinstance(s, int) else self.symbol for s in tensor.shape]
            tensor.info = None
        copy.has_shapes = False
        infer_shapes(copy)
        tensors = [t for node in copy.graph.nodes for t in (*node.inputs, *node.outputs)]
        known = {t.name: static_shape(t) for t in tensors if isinstance(t, Variable)}
        return {name: shape for name, shape in known.items() if shape is not None}

    def milliseconds(self, models: Sequence[onnx.ModelProto]) -> tuple[Latency, ...]:
        return tuple(_latency(count_macs(model)) for model in models)

    def compare(
        self, before: onnx.ModelProto, after: Sequence[onnx.ModelProto]
    ) -> tuple[LatencyPair, ...]:
        self.asked.append(len(after))
        return tuple(self._pair(count_macs(before), count_macs(model)) for model in after)

    def pair(self, before: Model, after: Model) -> LatencyPair:
        return self._pair(measure_stats(before).macs, measure_stats(after).macs)

    def pairs(self, before: Model, after: Sequence[Model]) -> tuple[LatencyPair, ...]:
        return tuple(self.pair(before, model) for model in after)

    brief_pairs = pairs
    looped = pairs

    def _pair(self, before: int | None, after: int | None) -> LatencyPair:
        a, b = _latency(before), _latency(after)
        ratio = a.median / b.median
        return LatencyPair(a, b, ratio, ratio - self.spread, ratio + self.spread)


def _latency(macs: int | None) -> Latency:
    assert macs is not None
    ms = macs / PER_MS
    return Latency(ms, ms, ms, 1)


def fake_times(
    monkeypatch: pytest.MonkeyPatch,
    is_slow: Callable[[Model], bool],
    stopwatch: Stopwatch | None = None,
) -> None:
    """Let whole runs take the models for slower that `is_slow` names, and others for faster.

    Passes ask `stopwatch`, if it is given.
    """

    def time(self: RuntimeProver, before: Model, after: Model) -> LatencyPair:
        a, b = Latency(1.0, 1.0, 1.0, 9), Latency(2.0, 2.0, 2.0, 9)
        first, second, ratio = (a, b, 0.5) if is_slow(after) else (b, a, 2.0)
        return LatencyPair(first, second, ratio, ratio - 0.01, ratio + 0.01)

    monkeypatch.setattr(RuntimeProver, "time", time)
    if stopwatch is not None:
        monkeypatch.setattr(
            "onnxslim.runtime.measure.stopwatch.SessionStopwatch", lambda *_, **__: stopwatch
        )
