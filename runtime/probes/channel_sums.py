"""Moments of the channels of one tensor in two models, streamed from calibration samples.

Owns: the sums, and which rows count. Not here: what is fitted with them (see
`lossy.normalization_refit`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.io.model import Model
from onnxslim.records import Skip
from onnxslim.runtime.measure.padding import positions_that_count, split_rows
from onnxslim.runtime.probes.activation_cache import ActivationCaches
from onnxslim.runtime.samples.stream import Sample
from onnxslim.services.channel_moments import ChannelMoments


def channel_moments(
    model: Model,
    reference: Model,
    name: str,
    samples: Iterable[Sample],
    activations: ActivationCaches,
    *,
    threads: int | None = None,
) -> ChannelMoments | Skip:
    """Moments of the channels along the last axis of the tensor `name`, in both models.

    Rows of padding do not count where the model's mask says which they are.

    Returns:
        A Skip where the two cannot be compared, or where nothing before the tensor was changed.

    Raises:
        RuntimeFailure: onnxruntime refuses a model or fails on a sample.
    """
    own, other = activations.exposed_model(model), activations.exposed_reference(reference)
    tensors = [_tensor(exposed.graph, name) for exposed in (own, other)]
    mine, theirs = tensors
    if mine is None or theirs is None:
        return Skip(name, "the two models do not both compute it, as floats in the main graph")
    numbering = activations.model.numbering
    if numbering.value_numbers(own.graph)[mine] is numbering.value_numbers(other.graph)[theirs]:
        return Skip(name, "it has the value that it has in the original model")
    sums = _PairSums(name)
    keys = (own.expose_main(mine), other.expose_main(theirs))
    with (
        activations.model.play(own, keys[:1], threads) as changed,
        activations.reference.play(other, keys[1:], threads) as original,
    ):
        for sample in samples:
            counts = positions_that_count(other.padding, sample.feeds)
            x = split_rows(changed.run(sample.feeds, sample.rows)[keys[0]], counts)[0]
            y = split_rows(original.run(sample.feeds, sample.rows)[keys[1]], counts)[0]
            if x.shape == y.shape:
                sums.add(x, y)
    return sums.result()


def _tensor(graph: gs.Graph, name: str) -> gs.Tensor | None:
    """The tensor of this name that a node of the main graph computes, if it holds floats."""
    made = (tensor for node in graph.nodes for tensor in node.outputs)
    return next((t for t in made if t.name == name and is_float(t.dtype)), None)


@dataclass
class _PairSums:
    """Sums over rows, by channel."""

    name: str
    count: int = 0
    totals: list[np.ndarray] = field(default_factory=lambda: [np.zeros(1)] * 4)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows of both models, (..., channels)."""
        rows = [np.asarray(array, np.float64).reshape(-1, array.shape[-1]) for array in (x, y)]
        left, right = rows
        self.count += len(left)
        new = (left.sum(0), right.sum(0), (left * left).sum(0), (left * right).sum(0))
        self.totals = [total + more for total, more in zip(self.totals, new, strict=True)]

    def result(self) -> ChannelMoments | Skip:
        if not self.count:
            return Skip(self.name, "no calibration sample gives it one shape in both models")
        return ChannelMoments(self.name, self.count, *(total / self.count for total in self.totals))
