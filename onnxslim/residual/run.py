"""One run of `prune-residual-stream`: find streams, choose their bases, rotate, cut, refit.

Owns: the order of these steps, and the report. Not here: the options (see
`passes.prune_residual_stream`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.analysis.normalizations import Normalization
from onnxslim.graph.clone import clone_graph
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.problems import Problems, assign
from onnxslim.pipeline.passes import Context
from onnxslim.records import Change, Fidelity, PassResult
from onnxslim.residual.basis import Basis
from onnxslim.residual.exits import Exits
from onnxslim.residual.rotation import RotatedStream, rotate
from onnxslim.residual.streams import Stream, StreamGraph

_SMALLEST: Final = np.float32(1e-6)  # root mean square of a row that is not zero
Moments = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class StreamOptions:
    """The options of `prune-residual-stream`.

    Attributes:
        ratio: share of the columns to remove; 0: streams are rotated only.
        align: what is left is a multiple of it.
        reconstruct: whether the layers that read a stream are refitted.
    """

    ratio: float
    align: int
    reconstruct: bool

    def kept(self, width: int) -> int:
        """Columns that are left of `width`; 2 at least, as LayerNormalization needs."""
        if not self.ratio:
            return width
        count = int(width * (1 - self.ratio) / self.align + 0.5) * self.align
        return min(width, max(count, self.align, 2))


class StreamPruning:
    """A graph whose residual streams become narrower."""

    def __init__(self, rewriter: Rewriter, context: Context, options: StreamOptions) -> None:
        self.rw, self.context, self.options = rewriter, context, options

    def run(self) -> PassResult:
        """Rotate, cut and refit."""
        if not self._can_rotate():
            return PassResult(skips=self.rw.result().skips)
        exits = Exits(self.rw, StreamGraph(self.rw))
        graph = StreamGraph(self.rw)
        rotated = list(
            self._rotated([found for found in graph.streams() if self._is_wanted(found)])
        )
        changes = [_change(item) for item in rotated]
        readers = {
            member.layer.name
            for item in rotated
            for member in item.stream.group.readers
            if member.layer is not None
        }
        rotate(self.rw, graph, rotated)
        exits.remove_unused()
        self.rw.result()
        if not self.options.ratio:
            return PassResult(tuple(changes), self.rw.result().skips, Fidelity.CLOSE)
        if self.options.reconstruct:
            changes += self._refitted(readers)
        return PassResult(tuple(changes), self.rw.result().skips, Fidelity.LOSSY)

    # ------------------------------------------------------------------ which streams

    def _can_rotate(self) -> bool:
        """Whether there is a stream to rotate, found on a copy; says of the others why not."""
        if self.context.calibration is None or self.context.model is None:
            self.rw.decline("no samples show in which directions it varies")
            return False
        trial = Rewriter(clone_graph(self.rw.main))
        Exits(trial, StreamGraph(trial))
        found = list(StreamGraph(trial).streams())
        if not found:
            why = "no normalization that is known reads what layers write; put simplify in front"
            self.rw.decline(why)
        names = {node_label(node) for node in self.rw.main.nodes}
        for item in found:
            if not isinstance(item, Stream):
                norms, why = item
                known = (norm.label for norm in norms if norm.label in names)
                self.rw.skip(next(known, self.rw.main.name), why)
            elif not self._is_wanted(item):
                why = f"no multiple of {self.options.align} columns is near enough to the share"
                self.rw.skip(item.label, why)
        return any(map(self._is_wanted, found))

    def _is_wanted(self, item: object) -> bool:
        if not isinstance(item, Stream):
            return False
        return not self.options.ratio or self.options.kept(item.width) < item.width

    # ------------------------------------------------------------------ their bases

    def _rotated(self, found: Sequence[object]) -> Iterator[RotatedStream]:
        streams = [item for item in found if isinstance(item, Stream)]
        moments = self._moments(streams)
        for stream in streams:
            total = np.sum([moments[norm.label] for norm in stream.norms], axis=0)
            kept = self.options.kept(stream.width)
            basis = Basis.of(total, kept, is_centred=stream.is_centred)
            yield RotatedStream(stream, basis, moments, basis.share(total))

    def _moments(self, streams: Sequence[Stream]) -> Moments:
        """Second moments, (d, d), of what each normalization returns without γ and β."""
        assert self.context.calibration is not None
        assert self.context.model is not None
        model = self.context.model.clone()
        tensors = {tensor.name: tensor for node in model.graph.nodes for tensor in node.outputs}
        sources = dict.fromkeys(str(n.source.name) for stream in streams for n in stream.norms)
        model.graph.outputs = [tensors[name] for name in sources]
        sums = {n.label: np.zeros((s.width, s.width)) for s in streams for n in s.norms}
        samples = self.context.calibration.outputs(model)
        for sample in self.context.progress.over("looking at streams", samples, "runs"):
            for stream in streams:
                for norm in stream.norms:
                    rows = _normalized(sample.values[str(norm.source.name)], norm, stream.width)
                    sums[norm.label] += rows.T @ rows
        return sums

    # ------------------------------------------------------------------ what reads them

    def _refitted(self, readers: set[str]) -> Iterator[Change]:
        """Fit layers, one after the other, to what they returned in the original model."""
        problems = Problems(self.rw, self.context)
        problems = problems.restricted(
            lambda shared: all(
                layer.name in readers and problems.original(layer) is not None
                for layer in shared.layers
            )
        )
        for problem in problems:
            if problem.has_data:
                assign(self.rw, problem, problem.target)
                error = problem.relative_error(problem.target)
                yield Change(problem.name, f"refitted, relative output error {error:.2g}")


def _change(item: RotatedStream) -> Change:
    kept, width = item.basis.kept, item.basis.width
    what = f"the stream that it writes was rotated, and has {kept} of {width} columns"
    if kept < width:
        what += f", with {item.share:.1%} of what its normalizations see"
    return Change(item.stream.label, what)


def _normalized(values: np.ndarray, norm: Normalization, width: int) -> np.ndarray:
    """What a normalization makes of rows, without γ and β, (rows·copies, width)."""
    rows = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
    if norm.is_centred:
        rows = rows - rows.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.square(rows).mean(axis=1, keepdims=True))
    rows = rows / np.maximum(scale, _SMALLEST)
    return np.asarray(rows.reshape(-1, width))
