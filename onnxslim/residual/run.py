"""One run of `prune-residual-stream`: find streams, choose their bases, rotate, cut, refit.

Owns: the order of these steps, and the report. Not here: the options (see
`passes.prune_residual_stream`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.graph.clone import clone_graph
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.problems import Problems, assign
from onnxslim.pipeline.passes import Context
from onnxslim.records import Change, Fidelity, PassResult
from onnxslim.residual.basis import Basis
from onnxslim.residual.exits import Exits
from onnxslim.residual.normalizations import Normalization
from onnxslim.residual.rotation import RotatedStream, rotate
from onnxslim.residual.streams import Stream, StreamGraph

Moments = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class StreamOptions:
    """The options of `prune-residual-stream`.

    Attributes:
        ratio: share of the columns to remove.
        align: what is left is a multiple of it.
        reconstruct: whether readers are refitted.
    """

    ratio: float
    align: int
    reconstruct: bool

    def kept(self, width: int) -> int:
        """Columns that are left of `width`."""
        if not self.ratio:
            return width
        count = round(width * (1 - self.ratio) / self.align) * self.align
        return min(width, max(count, min(self.align, width), 2))


class StreamPruning:
    """A graph whose residual streams become narrower."""

    def __init__(self, rewriter: Rewriter, context: Context, options: StreamOptions) -> None:
        self.rw, self.context, self.options = rewriter, context, options

    def run(self) -> PassResult:
        """Rotate, cut and refit."""
        if not self._are_there():
            return PassResult(skips=self.rw.result().skips)
        exits = Exits(self.rw, StreamGraph(self.rw))
        graph = StreamGraph(self.rw)
        streams = [item for item in graph.streams() if isinstance(item, Stream)]
        rotated = self._rotated(streams)
        changes = [
            Change(item.stream.label, f"{item.basis.kept} of {item.basis.width} columns")
            for item in rotated
        ]
        names = {m.layer.name for s in streams for m in s.group.readers if m.layer is not None}
        rotate(self.rw, graph, rotated)
        exits.remove_unused()
        self.rw.result()
        if self.options.ratio and self.options.reconstruct:
            self._refit(names)
        fidelity = Fidelity.LOSSY if self.options.ratio else Fidelity.CLOSE
        return PassResult(tuple(changes), self.rw.result().skips, fidelity)

    def _are_there(self) -> bool:
        """Whether a stream can be rotated, found on a copy; says of the others why not."""
        trial = Rewriter(clone_graph(self.rw.main))
        Exits(trial, StreamGraph(trial))
        found = list(StreamGraph(trial).streams())
        for item in found:
            if not isinstance(item, Stream):
                norm, why = item
                self.rw.skip(norm.label, why)
        return any(isinstance(item, Stream) for item in found)

    def _rotated(self, streams: Sequence[Stream]) -> list[RotatedStream]:
        moments = self._moments(streams)
        found = []
        for stream in streams:
            total = np.sum([moments[norm.label] for norm in stream.norms], axis=0)
            basis = Basis.of(total, self.options.kept(stream.width), is_centred=stream.is_centred)
            found.append(RotatedStream(stream, basis, moments))
        return found

    def _moments(self, streams: Sequence[Stream]) -> Moments:
        """Second moments, (d, d), of what each normalization returns without γ and β."""
        if self.context.calibration is None or self.context.model is None:
            return {n.label: np.eye(s.width) for s in streams for n in s.norms}
        model = self.context.model.clone()
        tensors = {t.name: t for node in model.graph.nodes for t in node.outputs}
        sources = {str(norm.source.name) for stream in streams for norm in stream.norms}
        model.graph.outputs = [tensors[name] for name in sources]
        sums = {n.label: np.zeros((s.width, s.width)) for s in streams for n in s.norms}
        for sample in self.context.calibration.outputs(model):
            for stream in streams:
                for norm in stream.norms:
                    rows = _normalized(sample.values[str(norm.source.name)], norm, stream.width)
                    sums[norm.label] += rows.T @ rows
        return sums

    def _refit(self, names: set[str]) -> None:
        problems = Problems(self.rw, self.context)
        problems = problems.restricted(
            lambda shared: all(
                la.name in names and problems.original(la) is not None for la in shared.layers
            )
        )
        for problem in problems:
            if problem.has_data:
                assign(self.rw, problem, problem.target)


def _normalized(values: np.ndarray, norm: Normalization, width: int) -> np.ndarray:
    """What a normalization makes of rows, without γ and β, (rows·copies, width)."""
    rows = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
    if norm.is_centred:
        rows = rows - rows.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.square(rows).mean(axis=1, keepdims=True))
    rows = rows / np.maximum(scale, np.float32(1e-6))
    return np.asarray(rows.reshape(-1, width))
