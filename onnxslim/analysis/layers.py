"""The weight layers of a graph, seen alike: y = W·x with W one matrix per group.

Conv, ConvTranspose, Gemm and MatMul with a constant weight, in bodies too. Every lossy weight pass
works on the canonical weight, of shape (groups, outputs per group, inputs per group), rows =
outputs, and on vectors x that the layer's `unfolding` makes of its input tensor:

    Conv           x is a patch, features ordered (channel of the group, kernel position)
    ConvTranspose  x is the patch that the adjoint reads: what meets one output position
    Gemm, MatMul   x is a row, or a column, of the other operand; Gemm's alpha multiplies x

The canonical weight holds the tensor's own values in another order, so `restored` is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.graph.functions import DEQUANTIZE, is_codebook
from onnxslim.graph.ir import Constant, Node, node_label, subgraphs_of
from onnxslim.graph.operands import const_array, const_value, constant_node_value, is_present
from onnxslim.records import Skip


@dataclass(frozen=True)
class ConvPatches:
    """How a Conv, or a ConvTranspose, reads its input; the fields are the operator's attributes.

    Attributes:
        pads: begins, then ends, one of each per spatial axis.
        transposed: whether it is a ConvTranspose.
        output_padding, output_shape: of a ConvTranspose; () when absent.
    """

    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Vectors:
    """Rows (axis -1) or columns (axis -2) of a matrix, or of each matrix in a stack.

    Attributes:
        axis: of the other operand, along which x lies.
        out_axis: of the output, along which y lies; None when the weight is a vector.
        batch: shape of the weight's stack of matrices; each of them is a group.
        scale: what x is multiplied by (Gemm's alpha).
    """

    axis: int
    out_axis: int | None
    batch: tuple[int, ...] = ()
    scale: float = 1.0

    @property
    def groups(self) -> int:
        """How many matrices the weight stacks."""
        return prod(self.batch)


Unfolding = ConvPatches | Vectors


@dataclass(frozen=True)
class WeightLayer:
    """A node that is linear in its input `data`, with a constant weight.

    Attributes:
        name: its output tensor; where sibling bodies repeat a name, with the body's.
        node: Conv, ConvTranspose, Gemm or MatMul.
        graph: the graph that holds the node.
        bodies: the nodes in whose bodies it lies, outermost first, with the name of the body.
        data, weight: indices of inputs.
        bias: index of the bias input, whether present or not; None where the operator has none.
        unfolding: how x comes out of the input tensor.
        rows: outputs per group.
        columns: inputs per group.
        swapped: whether inputs come before outputs in the weight tensor.
        shared: labels of the other nodes that use the same weight tensor.
    """

    name: str
    node: Node
    graph: gs.Graph
    bodies: tuple[tuple[Node, str], ...]
    data: int
    weight: int
    bias: int | None
    unfolding: Unfolding
    rows: int
    columns: int
    swapped: bool
    shared: tuple[str, ...] = ()

    @property
    def groups(self) -> int:
        """Number of independent matrices."""
        return self.unfolding.groups

    @property
    def data_tensor(self) -> gs.Tensor:
        """The input that x comes from."""
        return self.node.inputs[self.data]

    @property
    def weight_tensor(self) -> gs.Tensor:
        """The constant, or the output of the `Constant` node, that holds the weight."""
        return self.node.inputs[self.weight]

    @property
    def holder(self) -> Constant:
        """The `Constant` whose `values` are the weight: assign a new array to replace it."""
        tensor = self.weight_tensor
        if isinstance(tensor, Constant):
            return tensor
        value: Constant = tensor.inputs[0].attrs["value"]
        return value

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.groups * self.rows * self.columns

    def canonical(self) -> np.ndarray:
        """The weight as (groups, rows, columns), in its own type; read-only or a copy."""
        return canonical(self, self.holder.values)

    def restored(self, weight: np.ndarray) -> np.ndarray:
        """The array for `holder.values`, of its shape and type, from (groups, rows, columns)."""
        return restored(self, weight)


def canonical(layer: WeightLayer, stored: np.ndarray) -> np.ndarray:
    """`stored`, laid out as the weight of `layer`, as (groups, rows, columns)."""
    groups, rows, columns = layer.groups, layer.rows, layer.columns
    if isinstance(layer.unfolding, ConvPatches) and layer.swapped:
        taps = prod(layer.unfolding.kernel)
        # (C_in, C_out/g, k...) -> (g, C_in/g, C_out/g, k) -> (g, C_out/g, C_in/g, k)
        split = stored.reshape(groups, columns // taps, rows, taps)
        return split.transpose(0, 2, 1, 3).reshape(groups, rows, columns)
    if layer.swapped:
        return stored.reshape(groups, columns, rows).transpose(0, 2, 1)
    return stored.reshape(groups, rows, columns)


def restored(layer: WeightLayer, weight: np.ndarray) -> np.ndarray:
    """The inverse of `canonical`, rounded once to the type of the stored weight."""
    stored = layer.holder.stored
    groups, rows, columns = layer.groups, layer.rows, layer.columns
    if isinstance(layer.unfolding, ConvPatches) and layer.swapped:
        taps = prod(layer.unfolding.kernel)
        weight = weight.reshape(groups, rows, columns // taps, taps).transpose(0, 2, 1, 3)
    elif layer.swapped:
        weight = weight.reshape(groups, rows, columns).transpose(0, 2, 1)
    return np.ascontiguousarray(weight.reshape(stored.shape).astype(stored.dtype))


def bias_of(layer: WeightLayer) -> np.ndarray | str:
    """What the layer adds to its output, as (groups, rows), float64 (Gemm's beta included).

    Zeros where it has no bias; a sentence where the bias is not of that form.
    """
    shape = (layer.groups, layer.rows)
    if layer.bias is None or not is_present(layer.node, layer.bias):
        return np.zeros(shape)
    array = const_array(layer.node.inputs[layer.bias])
    if array is None:
        return "its bias is computed at run time"
    values = np.asarray(array, np.float64)
    if isinstance(layer.unfolding, ConvPatches):
        return values.reshape(shape)
    values = values * float(layer.node.attrs.get("beta", 1.0))
    matrix = values.reshape((1,) * (2 - values.ndim) + values.shape)
    along, across = (1, 0) if layer.unfolding.out_axis == -1 else (0, 1)
    if matrix.shape[across] != 1:
        return "its bias is a matrix"
    flat = matrix.reshape(matrix.shape[along])
    return np.broadcast_to(flat, prod(shape)).reshape(shape)


# ---------------------------------------------------------------------------- listing


def weight_layers(graph: gs.Graph) -> tuple[tuple[WeightLayer, ...], tuple[Skip, ...]]:
    """The weight layers of `graph` and its bodies, and the operators that are none, with why.

    Nodes inside local functions are not seen.
    """
    layers: list[WeightLayer] = []
    skips: list[Skip] = []
    for current, bodies in _graphs_with_paths(graph):
        for node in current.nodes:
            if not node.is_onnx or node.op not in _READERS:
                continue
            found = _READERS[node.op](node)
            if isinstance(found, str):
                skips.append(Skip(node_label(node), found))
            else:
                layers.append(_layer(node, current, bodies, found))
    return tuple(_with_sharers(_with_unique_names(layers))), tuple(skips)


def _graphs_with_paths(
    graph: gs.Graph,
) -> Iterator[tuple[gs.Graph, tuple[tuple[Node, str], ...]]]:
    stack: list[tuple[gs.Graph, tuple[tuple[Node, str], ...]]] = [(graph, ())]
    while stack:
        current, path = stack.pop()
        yield current, path
        inner = [
            (body, (*path, (node, _body_name(node, body))))
            for node in current.nodes
            for body in subgraphs_of(node)
        ]
        stack.extend(reversed(inner))


def _body_name(node: Node, body: gs.Graph) -> str:
    return next((name for name, value in node.attrs.items() if value is body), "body")


def _with_unique_names(layers: list[WeightLayer]) -> list[WeightLayer]:
    """Sibling bodies may repeat a tensor's name; such layers get their body's name in front."""
    counts = Counter(layer.name for layer in layers)
    return [
        replace(layer, name="/".join((*_path_words(layer), layer.name)))
        if counts[layer.name] > 1
        else layer
        for layer in layers
    ]


def _path_words(layer: WeightLayer) -> Iterator[str]:
    for node, body in layer.bodies:
        yield node_label(node)
        yield body


def _with_sharers(layers: list[WeightLayer]) -> Iterator[WeightLayer]:
    names = {layer.node: layer.name for layer in layers}
    for layer in layers:
        others = (user for user in layer.weight_tensor.outputs if user is not layer.node)
        shared = dict.fromkeys(names.get(user, node_label(user)) for user in others)
        yield replace(layer, shared=tuple(shared)) if shared else layer


def _layer(
    node: Node, graph: gs.Graph, bodies: tuple[tuple[Node, str], ...], found: _Reading
) -> WeightLayer:
    data, weight, bias = found.places
    sizes = (found.rows, found.columns)
    place = (node_label(node), node, graph, bodies)
    return WeightLayer(*place, data, weight, bias, found.unfolding, *sizes, found.swapped)


# ---------------------------------------------------------------------------- operators

RUN_TIME: Final = "its weight is computed at run time"
_DEQUANTIZED: Final = "its weight is dequantized (DequantizeLinear)"
_CODEBOOK: Final = "its weight is a codebook (Lookup)"
_CONSTANT: Final = "all its operands are constant"


@dataclass(frozen=True)
class _Reading:
    """What an operator says of itself; `places` are the inputs of data, weight and bias."""

    places: tuple[int, int, int | None]
    unfolding: Unfolding
    rows: int
    columns: int
    swapped: bool


def _weight_shape(tensor: gs.Tensor) -> tuple[int, ...] | str:
    """The shape of a float constant that can be replaced, or why it is none."""
    stored = const_value(tensor)
    if stored is None:
        if is_codebook(tensor):
            is_integer = str(tensor.inputs[0].op).startswith(DEQUANTIZE)
            return _DEQUANTIZED if is_integer else _CODEBOOK
        made_by = {node.op for node in tensor.inputs if node.is_onnx}
        return _DEQUANTIZED if "DequantizeLinear" in made_by else RUN_TIME
    if not is_float(stored.dtype):
        return f"its weight is of type {stored.dtype}"
    if stored.size == 0:
        return "its weight is empty"
    if not isinstance(tensor, Constant) and not _is_plain_constant(tensor.inputs[0]):
        return "its weight is a Constant node of another kind than a tensor"
    return tuple(stored.shape)


def _is_plain_constant(node: Node) -> bool:
    return isinstance(node.attrs.get("value"), Constant) and constant_node_value(node) is not None


def _ints(node: Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = node.attrs.get(name)
    return default if value is None or not len(value) else tuple(int(item) for item in value)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _read_conv(node: Node) -> _Reading | str:
    shape = _weight_shape(node.inputs[1])
    if isinstance(shape, str):
        return shape
    group = int(node.attrs.get("group", 1))
    transposed = node.op == "ConvTranspose"
    if len(shape) < 3 or shape[0] % group:
        return f"its weight of shape {list(shape)} does not fit {group} groups"
    kernel, ndim = shape[2:], len(shape) - 2
    unfolding = ConvPatches(
        groups=group,
        kernel=kernel,
        strides=_ints(node, "strides", (1,) * ndim),
        dilations=_ints(node, "dilations", (1,) * ndim),
        pads=_ints(node, "pads", (0,) * (2 * ndim)),
        auto_pad=_text(node.attrs.get("auto_pad", "NOTSET")),
        transposed=transposed,
        output_padding=_ints(node, "output_padding", ()),
        output_shape=_ints(node, "output_shape", ()),
    )
    rows, channels = shape[1], shape[0] // group
    if not transposed:
        rows, channels = channels, rows
    columns = channels * prod(kernel)
    return _Reading((0, 1, 2), unfolding, rows, columns, swapped=transposed)


def _constant_operand(node: Node) -> tuple[int, tuple[int, ...]] | str:
    """Which of two operands is the weight, and its shape; or why neither is."""
    reason = ""
    for weight in (1, 0):
        shape = _weight_shape(node.inputs[weight])
        if not isinstance(shape, str):
            both = const_value(node.inputs[1 - weight]) is not None
            return _CONSTANT if both else (weight, shape)
        reason = shape if reason in ("", RUN_TIME) else reason
    return reason


def _read_gemm(node: Node) -> _Reading | str:
    found = _constant_operand(node)
    if isinstance(found, str):
        return found
    weight, shape = found
    scale = float(node.attrs.get("alpha", 1.0))
    if scale == 0:
        return "its alpha is 0, so its weight has no effect"
    if len(shape) != 2 or "broadcast" in node.attrs:
        return "it is not the Gemm of opset 7 and later on matrices"
    flipped = bool(node.attrs.get("transB" if weight else "transA", 0))
    data_flipped = bool(node.attrs.get("transA" if weight else "transB", 0))
    # A' is (M, K), B' is (K, N): x is a row of A' (weight B) or a column of B' (weight A)
    axis = -1 if bool(weight) != data_flipped else -2
    swapped = bool(weight) != flipped  # (K, N) and transposed (M, K) have inputs first
    rows, columns = (shape[1], shape[0]) if swapped else shape
    unfolding = Vectors(axis, -1 if weight else -2, scale=scale)
    return _Reading((1 - weight, weight, 2), unfolding, rows, columns, swapped=swapped)


def _read_matmul(node: Node) -> _Reading | str:
    found = _constant_operand(node)
    if isinstance(found, str):
        return found
    weight, shape = found
    axis, places = -1 if weight else -2, (1 - weight, weight, None)
    if len(shape) == 1:
        return _Reading(places, Vectors(axis, None), 1, shape[0], swapped=False)
    unfolding = Vectors(axis, axis, batch=shape[:-2])
    rows, columns = (shape[-1], shape[-2]) if weight else shape[-2:]
    return _Reading(places, unfolding, rows, columns, swapped=bool(weight))


_READERS: Final[dict[str, Callable[[Node], _Reading | str]]] = {
    "Conv": _read_conv,
    "ConvTranspose": _read_conv,
    "Gemm": _read_gemm,
    "MatMul": _read_matmul,
}
