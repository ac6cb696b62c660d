"""Cross-layer equalization: channels of neighbouring layers get equal ranges.

A layer's output channel may be divided by any s > 0 if the layer that reads it multiplies by s.
With a positively homogeneous f between the layers, f(s·x) = s·f(x), the model computes the same:

    W₂·f(W₁·x + b₁) = (W₂·S)·f(S⁻¹·W₁·x + S⁻¹·b₁),   S = diag(s)

The s that gives both weights the same range in each channel uses the grids best: s = √(r₁ / r₂), r₁
the largest weight that writes the channel, r₂ the largest that reads it (Nagel et al. 2019,
arXiv:1906.04721, eqs. 8 to 11). A depthwise Conv reads and writes, so chains of pairs are balanced
in turn until no scale moves.

We differ: pooling, flattening and ConvTranspose may lie between, and chains have any length.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.absorption import LinearLayer
from onnxslim.analysis.linear_operators import LINEAR_OPS
from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.quantization.channel_scaling import ScaledLayer, reads, same_axis, scalable_layer
from onnxslim.records import Fidelity

# f(s·x) = s·f(x) for s > 0, in each channel by itself, and the channels stay where they are
_HOMOGENEOUS: Final = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "Abs", "Identity"),
        *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"),
    }
)
_FLATTENS: Final = frozenset({"Flatten", "Reshape", "Squeeze"})
_SETTLED: Final = 0.01  # largest change of log s at which iteration stops
_ROUNDS: Final = 50


def equalize(rewriter: Rewriter) -> None:
    """Equalize the channels between all pairs of layers that allow it; edits the graph.

    The rewriter logs what was done, and which layers are left alone and why.
    """
    pairs = _pairs(rewriter)
    for _ in range(_ROUNDS):
        if max((pair.balance() for pair in pairs), default=0.0) < _SETTLED:
            break
    scaled = {id(layer): layer for pair in pairs for layer in (pair.first, pair.second)}
    arrays = {key: layer.arrays() for key, layer in scaled.items()}
    for found in arrays.values():
        if isinstance(found, str):
            rewriter.skip(pairs[0].label, f"channels were not equalized: {found}")
            return
    for key, found in arrays.items():
        assert not isinstance(found, str)
        scaled[key].write(rewriter, found)
    for pair in pairs:
        other = node_label(pair.second.layer.node)
        what = f"equalized {pair.first.layer.outs} channels with `{other}`"
        rewriter.note(pair.label, what, Fidelity.CLOSE)


@dataclass
class _LayerPair:
    """A layer, and the only one that reads its channels.

    Attributes:
        first: the layer that writes the channels.
        second: the layer that reads them.
        repeat: how many input channels of `second` one channel of `first` becomes by flattening.
    """

    first: ScaledLayer
    second: ScaledLayer
    repeat: int

    @property
    def label(self) -> str:
        return node_label(self.first.layer.node)

    def balance(self) -> float:
        """Give both layers the same range in each channel; return the largest change of log s."""
        written = self.first.out_peaks()  # r₁
        read = self.second.in_peaks().reshape(-1, self.repeat).max(axis=1)  # r₂
        used = (written > 0) & (read > 0)
        scale = np.sqrt(np.divide(written, read, out=np.ones_like(read), where=used))
        self.first.outs /= scale
        self.second.ins *= np.repeat(scale, self.repeat)
        return float(np.abs(np.log(scale)).max())


def _pairs(rewriter: Rewriter) -> list[_LayerPair]:
    scaled: dict[Node, ScaledLayer] = {}
    pairs = []
    for graph in rewriter.graphs():
        for node in graph.nodes:
            if node.op not in LINEAR_OPS:
                continue
            first = scalable_layer(rewriter, node)
            if first is None:
                continue
            found = first if isinstance(first, str) else _reader(rewriter, first)
            if isinstance(found, str):
                rewriter.skip(node, f"its channels are not equalized: {found}")
                continue
            assert isinstance(first, LinearLayer)
            second, repeat = found
            ends = [scaled.setdefault(la.node, ScaledLayer(la)) for la in (first, second)]
            pairs.append(_LayerPair(ends[0], ends[1], repeat))
    return pairs


def _reader(rewriter: Rewriter, first: LinearLayer) -> tuple[LinearLayer, int] | str:
    """The layer that alone reads the channels of `first`, each so often; or why there is none."""
    graph = rewriter.graph_of(first.node)
    tensor, axis = first.node.outputs[0], first.out_axis
    while True:
        if rewriter.uses(tensor) != 1 or rewriter.is_output(tensor):
            return f"`{tensor.name}` is returned or read more than once"
        node = tensor.outputs[0]
        if rewriter.graph_of(node) is not graph:
            return f"`{tensor.name}` is read in a body"
        second = scalable_layer(rewriter, node)
        if second is not None:
            return second if isinstance(second, str) else _joined(first, axis, second, tensor)
        if any(rewriter.uses(other) for other in node.outputs[1:]):
            return f"`{node_label(node)}` returns more than its channels"
        if not node.is_onnx or node.inputs[0] is not tensor:
            return f"they go through the {node.op} `{node_label(node)}`"
        if node.op in _FLATTENS:
            if not _flattens(node, axis, first.outs):
                return f"the {node.op} `{node_label(node)}` does not flatten them"
            axis = -1
        elif node.op not in _HOMOGENEOUS:
            return f"they go through the {node.op} `{node_label(node)}`"
        tensor = node.outputs[0]


def _joined(
    first: LinearLayer, axis: int, second: LinearLayer, tensor: gs.Tensor
) -> tuple[LinearLayer, int] | str:
    label = node_label(second.node)
    if not reads(second, tensor) or not same_axis(axis, second.in_axis, _rank(first, tensor)):
        return f"`{label}` reads them along another axis"
    if second.ins % first.outs:
        return f"`{label}` does not read all of them alike"
    return second, second.ins // first.outs


def _rank(first: LinearLayer, tensor: gs.Tensor) -> int | None:
    known = rank(tensor)
    return first.ndim if known is None and tensor is first.node.outputs[0] else known


def _flattens(node: Node, axis: int, channels: int) -> bool:
    """Whether `node` makes (N, C, ...) a matrix (N, C·...): a channel is a run of columns there."""
    before, after = node.inputs[0], node.outputs[0]
    ndim = rank(before)
    if ndim is None or ndim < 2 or not same_axis(axis, 1, ndim) or rank(after) != 2:
        return False
    sizes = [known_dim(before, place) or 0 for place in range(1, ndim)]
    return sizes[0] == channels and 0 < prod(sizes) == known_dim(after, 1)
