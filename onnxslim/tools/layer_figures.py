"""The layers with weights of a model, as the file stores them, and those of two models in pairs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.constant_sources import ConstantSources
from onnxslim.analysis.layer_names import layer_names
from onnxslim.constraints.coded import CodedReader
from onnxslim.constraints.dense import dense_values
from onnxslim.constraints.places import Places
from onnxslim.constraints.stored import CodedWeight, LookupWeight
from onnxslim.details import LayerFigures, LayerPair, Side
from onnxslim.graph.counts import node_macs
from onnxslim.graph.dims import static_shape
from onnxslim.graph.ir import Constant, Node, StoredSparse, node_label, to_onnx_dtype, walk_graphs
from onnxslim.io.model import Model
from onnxslim.services.stopwatch import Kernel

FigurePair = tuple[Mapping[str, LayerFigures], Mapping[str, LayerFigures]]

_VIEWS: Final = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_TABLES: Final = frozenset({"Gather", "LSTM", "GRU", "RNN"})  # layers without a matrix product
_INTEGER_KERNEL: Final = re.compile(r"QLinear|Q[A-Z]|.*Integer|DynamicQuantize")


@dataclass(frozen=True)
class _Weight:
    """The largest constant operand of a node.

    Attributes:
        shape: in which the node reads it.
        values: that the node computes with, in any layout.
        stored: how it is stored, in words.
        nbytes: in the file.
    """

    shape: tuple[int, ...]
    values: np.ndarray
    stored: str
    nbytes: int


def layer_figures(model: Model, kernels: Sequence[Kernel] | None = None) -> dict[str, LayerFigures]:
    """The layers of `model`, bodies included, by the label of their node, in order.

    Args:
        model: its tensors have shapes.
        kernels: of a profile of the model; None: it was not timed.
    """
    found = {}
    reading = _Weights(model)
    times: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels or ():
        times[kernel.node].append(kernel)
    for node in _nodes(model):
        weight = reading.of(node)
        if weight is not None:
            own = times[node_label(node)]
            found[node_label(node)] = _figures(node, weight, reading.sources, own)
    return found


def layer_twins(before: Model, after: Model, figures: FigurePair) -> dict[str, str]:
    """For each layer of `before` that is still there, its name now.

    A layer has its name, or else another one, in common: of its node, of its weight.
    """
    first, second = figures
    names, later = (layer_names(model.graph).others for model in (before, after))
    twins = {name: name for name in first if name in second}
    free: dict[str, str] = {}
    for name in second:
        if name not in twins:
            free.update((other, name) for other in reversed(later.get(name, ())))
    taken = set(twins)
    for name in first:
        if name in twins:
            continue
        twin = next((free[other] for other in names.get(name, ()) if other in free), None)
        if twin is not None and twin not in taken:
            taken.add(twin)
            twins[name] = twin
    return twins


def paired_layers(
    before: Model, after: Model, figures: FigurePair, twins: Mapping[str, str]
) -> tuple[LayerPair, ...]:
    """The layers of both models; a new one stands behind the one that comes before it in `after`.

    Args:
        before: the model whose order leads.
        after: the other model.
        figures: of their layers.
        twins: the layers that both have; see `layer_twins`.
    """
    first, second = figures
    names, later = (layer_names(model.graph).others for model in (before, after))
    rows: dict[str, list[LayerPair]] = {"": []}
    for name, figure in first.items():
        rows[name] = [LayerPair(name, names.get(name, ()), figure, second.get(twins.get(name, "")))]
    owners = {twin: name for name, twin in twins.items()}
    last = ""
    for name, figure in second.items():
        last = owners.get(name, last)
        if name not in owners:
            rows[last].append(LayerPair(name, later.get(name, ()), None, figure))
    return tuple(pair for found in rows.values() for pair in found)


class _Weights:
    """Reads the weight of each node of one model."""

    def __init__(self, model: Model) -> None:
        self.sources = ConstantSources(model.graph)
        self._reader = CodedReader(model.graph, Places(model.graph))
        self._coded: dict[int, CodedWeight] = {}
        for node in _nodes(model):
            record = self._reader.read(node)
            if isinstance(record, CodedWeight):
                self._coded[id(node)] = record

    def of(self, node: Node) -> _Weight | None:
        """None where the node is no layer, or its weight cannot be told."""
        if self.sources.determine(node) or (node_macs(node) == 0 and node.op not in _TABLES):
            return None
        if id(node) in self._coded:  # MatMulNBits
            return self._packed(node, self._coded[id(node)])
        operands = node.inputs[:1] if node.op == "Gather" else node.inputs
        found = [weight for tensor in operands if (weight := self._operand(tensor)) is not None]
        return max(found, key=lambda weight: weight.values.size, default=None)

    def _operand(self, tensor: gs.Tensor) -> _Weight | None:
        sources = self.sources.of(tensor)
        if not sources:
            return None
        nbytes, held = sum(constant.nbytes for constant in sources), tensor
        while held.inputs and held.inputs[0].op in _VIEWS:
            held = held.inputs[0].inputs[0]
        record = self._coded.get(id(held.inputs[0])) if held.inputs else None
        if record is not None:
            values, stored = dense_values(record), _coding(record)
        elif isinstance(held, Constant) or (held.inputs and held.inputs[0].op == "Constant"):
            constant = sources[0]
            values, stored = constant.values, _type_name(constant)
        else:
            return None
        shape = static_shape(tensor) or values.shape
        return _Weight(shape, values, stored, nbytes) if len(shape) > 1 else None

    def _packed(self, node: Node, record: CodedWeight) -> _Weight:
        nbytes = sum(c.nbytes for c in self.sources.of_all(node.inputs[1:4]))
        values = dense_values(record)
        bits = int(node.attrs.get("bits", 4))
        return _Weight(values.shape, values, f"{bits}-bit codes", nbytes)


def _figures(
    node: Node, weight: _Weight, sources: ConstantSources, kernels: Sequence[Kernel]
) -> LayerFigures:
    elements = max(1, weight.values.size)
    return LayerFigures(
        operator=str(node.op),
        shape=weight.shape,
        stored=weight.stored,
        bytes=sum(constant.nbytes for constant in sources.of_all(t for t in node.inputs if t.name)),
        bits=8 * weight.nbytes / elements,
        macs=node_macs(node) or None,  # tables and recurrent operators count none
        rank=_rank(node, weight.shape),
        sparsity=1 - int(np.count_nonzero(weight.values)) / elements,
        ms=sum(kernel.ms for kernel in kernels) if kernels else None,
        side=_side(node, kernels),
    )


def _rank(node: Node, shape: tuple[int, ...]) -> int:
    """The largest rank of the matrix of a group."""
    if node.op in ("MatMul", "Gemm", "MatMulNBits", *_TABLES) or len(shape) == 2:
        return min(shape[-2:])
    groups = max(1, int(node.attrs.get("group", 1)))
    return min(shape[0] // groups, prod(shape[1:]))


def _side(node: Node, kernels: Iterable[Kernel]) -> Side:
    operators = [kernel.operator for kernel in kernels if not kernel.is_inserted]
    if operators:
        is_integer = any(_INTEGER_KERNEL.match(operator) for operator in operators)
    else:
        makers = [tensor.inputs[0].op for tensor in node.inputs[:2] if tensor.inputs]
        is_pair = makers == ["DequantizeLinear"] * 2
        is_integer = is_pair or _INTEGER_KERNEL.match(str(node.op)) is not None
    return "integer" if is_integer else "float"


def _coding(record: CodedWeight) -> str:
    if isinstance(record, LookupWeight):
        return f"codes, table of {' + '.join(f'{s.levels:,}' for s in record.weight.stages)}"
    holder = getattr(record, "holder", None)
    return f"{_type_name(holder)} codes" if isinstance(holder, Constant) else "codes"


def _type_name(constant: Constant) -> str:
    stored = constant.stored
    data_type = getattr(stored, "data_type", None)
    if data_type is None:
        data_type = to_onnx_dtype(np.dtype(stored.dtype))
    name = str(onnx.TensorProto.DataType.Name(data_type)).lower()
    name = {"float": "float32", "double": "float64"}.get(name, name)
    return f"sparse {name}" if isinstance(stored, StoredSparse) else name


def _nodes(model: Model) -> Iterator[Node]:
    for graph in walk_graphs(model.graph):
        yield from graph.nodes
