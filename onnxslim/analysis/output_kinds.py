"""What the outputs of a model are: scores of classes or tokens, embeddings, or other values.

Read off the graph that ends in an output. Softmax along the last axis says classes, and so does an
ArgMax or Softmax beside; a normalization, Tanh or mean over positions says embedding, or hidden
states where there is a row for each position; a last dense layer is a head of one or the other,
which its widths, its bias, the outputs beside it and, last of all, names decide: those of outputs,
of layers and of weights. Scores over as
many entries as the table of tokens has rows are those of tokens. Where nothing decides, an output
holds values: its error is measured in dB, which suits everything.

Owns: which kind an output is. Not here: the figures of a kind (see `runtime.measure.drift`), and
how far they may move (see `pipeline.floors`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.analysis.output_parts import (
    PASS_THROUGH_OPS,
    RESHAPING_OPS,
    kept_axes,
    turned_axes,
)
from onnxslim.analysis.token_inputs import cache_outputs, vocabularies
from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node, ancestors, needs, subgraphs_of, walk_graphs
from onnxslim.graph.operands import axes_of, const_value, is_present, normalized
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.records import OutputKind

OutputKinds = Mapping[str, OutputKind]

_MAX_DEPTH: Final = 40  # nodes that are followed back from an output
_NEAR: Final = 8  # nodes between a division and the reduction that it divides by
_FEATURES: Final = 16  # a Tanh of fewer is a value that is bounded, such as a steering angle
_RANKS: Final = (1, 2, 3)  # of classes; an embedding has at least 2

_THROUGH: Final = PASS_THROUGH_OPS | {"Clip", "Max", "Min", "QuantizeLinear", "DequantizeLinear"}
_NORMALIZING: Final = frozenset(
    {
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("EmbedLayerNormalization", "LpNormalization"),
    }
)
_POOLING: Final = frozenset({"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"})
_REDUCING: Final = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceSumSquare", "ReduceL1"}
)
# products with weights: where their bias is
_PRODUCTS: Final = {
    "Gemm": 2,
    "Conv": 2,
    "MatMul": None,
    "FusedMatMul": None,
    "MatMulNBits": 5,
    "DynamicQuantizeMatMul": 4,
    "MatMulIntegerToFloat": 6,
}
_SOFTMAX: Final = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_CHOOSING: Final = frozenset({*_SOFTMAX, "ArgMax", "TopK"})
_CLASSIFIERS: Final = frozenset({"TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier"})

_NAMES: Final[Mapping[OutputKind, re.Pattern[str]]] = {
    kind: re.compile(rf"(?<![a-z])({words})")
    for kind, words in (
        (OutputKind.CLASSES, r"logit|prob|score|class|cls|label|softmax"),
        (OutputKind.EMBEDDING, r"embed|feature|hidden|proj"),
        (
            OutputKind.VALUES,
            r"b?box|reg|landmark|coord|offset|delta|depth|pose|keypoint|point|loc|value|age\b",
        ),
    )
}


@dataclass(frozen=True)
class _Finding:
    """What the graph says about a tensor; of a dense head, what speaks for either kind.

    Attributes:
        classes, features: number of outputs and inputs of the last dense layer; None: no such.
        has_bias: whether a constant is added behind that layer.
        names: of that layer and of its weight.
    """

    kind: OutputKind = OutputKind.VALUES
    is_head: bool = False
    classes: int | None = None
    features: int | None = None
    has_bias: bool = False
    names: tuple[str, ...] = ()


_VALUES: Final = _Finding()
_CLASSES: Final = _Finding(OutputKind.CLASSES)
_EMBEDDING: Final = _Finding(OutputKind.EMBEDDING)


def output_kinds(model: Model) -> OutputKinds:
    """The kind of each output of `model`, by name; infers shapes.

    Outputs that are no float tensors are discrete.
    """
    infer_shapes(model)
    vocabulary = max(vocabularies(model.graph).values(), default=0)
    caches = cache_outputs(model.graph)
    search = _Search(model.graph, vocabulary)
    outputs = [tensor for tensor in model.graph.outputs if tensor.name]
    findings = {str(tensor.name): search.finding(tensor) for tensor in outputs}
    has_scores = any(found.kind is OutputKind.CLASSES for found in findings.values())
    return {
        name: OutputKind.VALUES
        if name in caches
        else _kind(tensor, findings[name], vocabulary, has_scores=has_scores)
        for tensor in outputs
        for name in (str(tensor.name),)
    }


def _kind(tensor: gs.Tensor, found: _Finding, vocabulary: int, *, has_scores: bool) -> OutputKind:
    """The kind of an output that is no cache.

    `vocabulary` is the number of rows of the table of tokens, 0 without any. With `has_scores`, the
    graph proves that an output holds classes.
    """
    if tensor.dtype is None or not is_float(tensor.dtype):
        return OutputKind.DISCRETE if tensor.dtype is not None else OutputKind.VALUES
    ndim = rank(tensor)
    if known_dim(tensor, -1) == 1 or (ndim is not None and ndim not in _RANKS):
        return OutputKind.VALUES
    if found.kind is OutputKind.EMBEDDING and ndim == 1:
        return OutputKind.VALUES
    is_scores = found.is_head or found.kind is OutputKind.CLASSES
    entries = found.classes if found.is_head else known_dim(tensor, -1)
    if is_scores and vocabulary and entries == vocabulary and ndim != 1:
        return OutputKind.TOKEN_LOGITS
    return _of_rows(_head_kind(tensor, found, has_scores=has_scores), tensor)


def _of_rows(kind: OutputKind, tensor: gs.Tensor) -> OutputKind:
    """Embeddings of which there is one for each position are hidden states."""
    is_sequence = rank(tensor) == 3 and known_dim(tensor, 1) != 1
    return OutputKind.HIDDEN_STATES if kind is OutputKind.EMBEDDING and is_sequence else kind


def _head_kind(tensor: gs.Tensor, found: _Finding, *, has_scores: bool) -> OutputKind:
    """The kind of an output that may come from a last dense layer."""
    if not found.is_head:
        return _unread(tensor, found)
    named = _named(str(tensor.name))
    if named is not None:
        return named
    if has_scores:  # a head beside class scores: corners of boxes, landmarks
        return OutputKind.VALUES
    widens = found.classes is not None and found.classes > (found.features or found.classes)
    if rank(tensor) == 3 and found.has_bias and found.classes == found.features:
        return OutputKind.EMBEDDING
    if found.has_bias or widens:
        return OutputKind.CLASSES
    said = {_named(name) for name in found.names} - {None}
    return OutputKind.CLASSES if said == {OutputKind.CLASSES} else OutputKind.EMBEDDING


def _unread(tensor: gs.Tensor, found: _Finding) -> OutputKind:
    """The kind of an output that comes from no dense layer.

    Logits are scores wherever they are, such as those of the first and the last word of an answer:
    a column of a dense layer, with an entry for each position.
    """
    is_logits = found.kind is OutputKind.VALUES and "logit" in str(tensor.name).lower()
    return OutputKind.CLASSES if is_logits and rank(tensor) == 2 else found.kind


def _named(name: str) -> OutputKind | None:
    """The kind that the words of a name say; None where they say none, or several."""
    said = [kind for kind, words in _NAMES.items() if words.search(name.lower())]
    return said[0] if len(said) == 1 else None


class _Search:
    """Follows outputs back to what decides on their kind."""

    def __init__(self, graph: gs.Graph, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._opset = int(graph.opset)
        self._graph = graph

    def finding(self, tensor: gs.Tensor, axis: int = -1, depth: int = 0) -> _Finding:
        """What `tensor` is along `axis`, which counts from the end."""
        node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        if depth > _MAX_DEPTH or not isinstance(node, Node):
            return _VALUES
        if any(_chooses(user, axis, self._opset) for user in tensor.outputs):
            return _CLASSES
        return self._made(node, tensor, axis, depth + 1)

    def _made(self, node: Node, tensor: gs.Tensor, axis: int, depth: int) -> _Finding:
        op = node.op
        if op in _SOFTMAX:
            return _CLASSES if _chooses(node, axis, self._opset) else _VALUES
        if op in _NORMALIZING:
            return _EMBEDDING
        if op in _CLASSIFIERS:
            return _CLASSES if tensor is not node.outputs[0] else _VALUES
        if op == "BatchNormalization":
            return _EMBEDDING if rank(tensor) in (2, 3) else _VALUES
        if op in _PRODUCTS:
            return self._head(node, axis)
        if op in ("Sigmoid", "Tanh"):
            return self._squashed(node, axis, depth)
        if op in ("Add", "Sub", "Mul", "Div") or (op == "Sum" and len(node.inputs) == 2):
            return self._scaled(node, axis, depth)
        if op in _POOLING or op in _REDUCING:
            return self._pooled(node, axis, depth)
        if op == "If":
            return self._branches(node, node.outputs.index(tensor), axis, depth)
        return self._moved(node, tensor, axis, depth)

    def _head(self, node: Node, axis: int) -> _Finding:
        """A dense layer whose outputs lie along `axis`."""
        ndim = rank(node.outputs[0])
        place = 1 - ndim if node.op == "Conv" and ndim is not None else -1
        if place != axis or not self._is_fixed(node.inputs[1]):
            return _VALUES
        bias = _PRODUCTS[node.op]
        has_bias = bias is not None and is_present(node, bias)
        classes = known_dim(node.outputs[0], axis)
        features = known_dim(node.inputs[0], place)
        names = str(node.name), str(node.inputs[1].name)
        return _Finding(OutputKind.VALUES, True, classes, features, has_bias, names)

    def _squashed(self, node: Node, axis: int, depth: int) -> _Finding:
        """Scores of many labels, or the features that a Tanh bounds."""
        inner = self.finding(node.inputs[0], axis, depth)
        ndim = rank(node.outputs[0])
        if not inner.is_head or ndim is None:
            return _VALUES
        if self._vocabulary and inner.classes == self._vocabulary:
            return inner  # logits that a Tanh bounds
        if node.op == "Sigmoid":
            return inner if ndim <= 2 and inner.has_bias else _VALUES
        wide = inner.classes is not None and inner.classes >= _FEATURES
        return _EMBEDDING if wide and ndim in (2, 3) else _VALUES

    def _scaled(self, node: Node, axis: int, depth: int) -> _Finding:
        """An operand that is constant, or a division by a reduction, or a residual sum."""
        first, second = node.inputs
        fixed = [self._is_fixed(tensor) for tensor in (first, second)]
        if fixed[0] != fixed[1]:
            inner = self.finding(second if fixed[0] else first, axis, depth)
            is_bias = node.op in ("Add", "Sub", "Sum") and _is_vector(first if fixed[0] else second)
            return replace(inner, has_bias=True) if inner.is_head and is_bias else inner
        if node.op in ("Div", "Mul") and not any(fixed):
            return self._divided(node, axis, depth)
        if node.op in ("Add", "Sum") and _has_normalization(first, second):
            return _EMBEDDING  # the residual stream of a transformer
        return _VALUES

    def _divided(self, node: Node, axis: int, depth: int) -> _Finding:
        """X / Σ e^x is a softmax; x divided by its norm, its spread or its count an embedding."""
        for data, factor in ((0, 1), (1, 0)):
            if node.op == "Div" and data == 1:
                break
            if not _is_reduction(node.inputs[factor]):
                continue
            maker = node.inputs[data].inputs[0] if node.inputs[data].inputs else None
            if maker is not None and maker.op == "Exp":
                return _CLASSES
            inner = self.finding(node.inputs[data], axis, depth)
            return inner if inner.kind is OutputKind.CLASSES else _EMBEDDING
        return _VALUES

    def _pooled(self, node: Node, axis: int, depth: int) -> _Finding:
        """Positions reduced to fewer; rows that are left are features unless a head made them."""
        data = node.inputs[0]
        inside = _axis_before(node, axis, self._opset)
        if inside is None:
            return _VALUES
        inner = self.finding(data, inside, depth)
        if inner.is_head or inner.kind is OutputKind.CLASSES:
            return inner
        return _EMBEDDING if node.op not in ("MaxPool", "AveragePool") else inner

    def _branches(self, node: Node, index: int, axis: int, depth: int) -> _Finding:
        """What both branches return; the last one speaks for heads."""
        found = [self.finding(body.outputs[index], axis, depth) for body in subgraphs_of(node)]
        alike = {(item.kind, item.is_head) for item in found}
        return found[-1] if len(alike) == 1 else _VALUES

    def _moved(self, node: Node, tensor: gs.Tensor, axis: int, depth: int) -> _Finding:
        """An operator that moves values; any other one says nothing."""
        if not node.inputs:
            return _VALUES
        source, inside = node.inputs[0], None
        if node.op in _THROUGH:
            inside = axis
        elif node.op == "ScatterND" and len(node.inputs) > 2:
            source, inside = node.inputs[2], axis
        elif node.op in ("Slice", "Gather"):
            inside = _axis_before(node, axis, self._opset)
        elif node.op == "Transpose" and rank(source) is not None:
            inside = _place_before(turned_axes(node), axis, rank(tensor), rank(source))
        elif node.op in RESHAPING_OPS:
            places = kept_axes(source.shape, tensor.shape)
            inside = _place_before(places, axis, rank(tensor), rank(source))
        return _VALUES if inside is None else self.finding(source, inside, depth)

    def _is_fixed(self, tensor: gs.Tensor) -> bool:
        """Whether the value does not depend on an input."""
        if const_value(tensor) is not None:
            return True
        return bool(tensor.inputs) and id(tensor) not in self._varying

    @cached_property
    def _varying(self) -> set[int]:
        """The tensors that depend on an input: one way through the graph and its bodies."""
        found = {id(tensor) for tensor in self._graph.inputs}

        def varies(tensor: gs.Tensor) -> bool:
            is_made = bool(tensor.inputs) or const_value(tensor) is not None
            return bool(tensor.name) and (id(tensor) in found or not is_made)

        for graph in walk_graphs(self._graph):
            for node in graph.nodes:
                if any(map(varies, needs(node))):
                    found.update(map(id, node.outputs))
        return found


def _chooses(node: Node, axis: int, opset: int) -> bool:
    """Whether `node` is a Softmax, ArgMax or TopK along `axis`, which counts from the end."""
    if node.op not in _CHOOSING:
        return False
    default = {"ArgMax": 0, "TopK": -1}.get(node.op, 1 if opset < 13 else -1)
    own, ndim = int(node.attrs.get("axis", default)), rank(node.inputs[0])
    if own < 0:
        return own == axis
    return ndim is not None and own - ndim == axis


def _axis_before(node: Node, axis: int, opset: int) -> int | None:
    """Where `axis` of the result is in the operand of a reduction, pooling, Slice or Gather."""
    ndim = rank(node.inputs[0])
    if node.op in _POOLING:
        return axis if ndim is not None and axis == 1 - ndim else None
    if node.op == "Slice":
        return axis
    if ndim is None:
        return None
    if node.op == "Gather":
        indices, own = rank(node.inputs[1]), int(node.attrs.get("axis", 0)) % ndim
        behind = own - ndim  # axes behind the one that is indexed keep their place from the end
        return axis if indices is not None and axis > behind else None
    axes = normalized(axes_of(node, opset), ndim)
    if not axes:
        return None
    kept = list(range(ndim))
    if not node.attrs.get("keepdims", 1):
        kept = [place for place in kept if place not in axes]
    place = kept[axis] if -len(kept) <= axis else None
    return None if place is None or place in axes else place - ndim


def _place_before(
    places: Mapping[int, int], axis: int, after: int | None, before: int | None
) -> int | None:
    """The operand's axis that becomes `axis`, by the new axis of each; both count from the end."""
    if after is None or before is None:
        return None
    found = [old for old, new in places.items() if new - after == axis]
    return found[0] - before if len(found) == 1 else None


def _is_vector(tensor: gs.Tensor) -> bool:
    stored = const_value(tensor)
    return stored is not None and int(np.prod(stored.shape)) > 1


def _is_reduction(tensor: gs.Tensor) -> bool:
    """Whether `tensor` comes from a reduction by a few operators of the elements."""
    stack: list[tuple[gs.Tensor, int]] = [(tensor, 0)]
    while stack:
        current, depth = stack.pop()
        for node in current.inputs:
            if node.op in _REDUCING:
                return True
            if depth < _NEAR and node.op not in ("Gemm", "MatMul", "Conv"):
                stack += [(source, depth + 1) for source in node.inputs if source.inputs]
    return False


def _has_normalization(*tensors: gs.Tensor) -> bool:
    return any(node.op in _NORMALIZING for node in ancestors(tensors))
