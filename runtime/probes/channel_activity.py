"""Statistics of the single input channels of layers, streamed from calibration samples.

Owns: the sums. Not here: what a criterion makes of them (see `channels.criteria`). Memory holds the
values of one run, and one number for each sample and channel (for the histograms of `entropy`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import Vectors
from onnxslim.io.model import Model
from onnxslim.records import Skip
from onnxslim.runtime.probes.exposed import ExposedTensors, read, why_hidden
from onnxslim.runtime.samples.stream import Sample
from onnxslim.services.activity import ChannelActivity

_BINS: Final = 100  # of a histogram, as in Luo and Wu 2017


@dataclass
class _Sums:
    """Sums over the tensor that one layer reads, by channel."""

    layer: WeightLayer
    key: str
    count: int = 0
    total: np.ndarray | float = 0.0
    signed: np.ndarray | float = 0.0
    zeros: np.ndarray | float = 0.0
    most: np.ndarray | float = 0.0
    means: list[np.ndarray] = field(default_factory=list)

    def add(self, array: np.ndarray) -> None:
        unfolding = self.layer.unfolding
        axis = array.ndim + unfolding.axis if isinstance(unfolding, Vectors) else 1
        # (samples, positions, channels); a tensor without samples is one sample
        moved = np.moveaxis(np.asarray(array, np.float64), axis, -1)
        rows = moved.reshape(moved.shape[0] if moved.ndim > 1 else 1, -1, moved.shape[-1])
        if not rows.size:
            return
        self.count += rows.shape[0] * rows.shape[1]
        self.signed = self.signed + rows.sum(axis=(0, 1))
        sizes = np.abs(rows)
        self.total = self.total + sizes.sum(axis=(0, 1))
        self.most = np.maximum(self.most, sizes.max(axis=(0, 1)))
        self.zeros = self.zeros + (rows == 0).sum(axis=(0, 1))
        self.means.append(rows.mean(axis=1))

    def result(self) -> ChannelActivity | Skip:
        if not self.count:
            return Skip(self.layer.name, "no calibration sample reaches it")
        means = np.concatenate(self.means)  # (samples, channels)
        return ChannelActivity(
            self.layer.name,
            np.asarray(self.total) / self.count,
            np.asarray(self.zeros) / self.count,
            np.array([_entropy(column) for column in means.T]),
            np.asarray(self.most),
            np.asarray(self.signed) / self.count,
        )


def _entropy(values: np.ndarray) -> float:
    counts = np.histogram(values, bins=_BINS)[0].astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def stream_activity(
    model: Model,
    samples: Callable[[], Iterable[Sample]],
    layers: Sequence[str],
    *,
    threads: int | None = None,
) -> Iterator[ChannelActivity | Skip]:
    """Statistics of the input channels of each named weight layer, or why there are none.

    `samples` starts a pass over the calibration data.

    Raises:
        RuntimeFailure: onnxruntime refuses the model or fails on a sample.
    """
    exposed = ExposedTensors(model)
    sums: list[_Sums] = []
    for name in layers:
        layer = exposed.layers[name]
        key = exposed.expose(layer.data_tensor, layer)
        if key is None:
            yield Skip(name, why_hidden(layer))
        else:
            sums.append(_Sums(layer, key))
    session = exposed.open(exposed.segment(list(exposed.outputs.values()), ()), threads=threads)
    try:
        for sample in samples():
            outputs = {} if session is None else session.run(sample.feeds)
            for item in sums:
                item.add(read(item.key, sample.feeds, outputs))
    finally:
        if session is not None:
            session.close()
    for item in sums:
        yield item.result()
