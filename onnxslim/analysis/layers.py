"""The weight layers of a graph in one form: y = W·x with one matrix W per group.

Weight layers are Conv, ConvTranspose, Gemm and MatMul with a constant weight, in bodies too. Every
lossy weight pass works on the canonical weight, (groups, outputs per group, inputs per group), and
on vectors x that the layer's `unfolding` makes of its input tensor:

    Conv           x is a patch, features ordered (channel of the group, kernel position)
    ConvTranspose  x is the patch that the adjoint reads: what meets one output position
    Gemm, MatMul   x is a row, or a column, of the other operand; Gemm's alpha multiplies x

The canonical weight holds the tensor's own values in another order, so `restored` is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.linear_operators import (
    LINEAR_OPS,
    ConvPatches,
    LinearOperator,
    Unfolding,
    constant_weight,
    linear_operator,
)
from onnxslim.graph.ir import Constant, Node, node_label, subgraphs_of
from onnxslim.graph.operands import const_array, is_present
from onnxslim.records import Skip


@dataclass(frozen=True)
class WeightLayer:
    """A node that is linear in its input `data`, with a constant weight.

    Attributes:
        name: name of the output tensor, behind that of its body where sibling bodies repeat it.
        node: Conv, ConvTranspose, Gemm or MatMul.
        graph: the graph that holds the node.
        bodies: the nodes in whose bodies the layer lies, outermost first, with the body's name.
        data, weight: indices of the inputs that x and W come from.
        bias: index of the bias input, present or not; None where the operator has none.
        unfolding: how x comes out of the input tensor.
        rows: outputs per group.
        columns: inputs per group.
        inputs_first: whether inputs come before outputs in the weight tensor.
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
    inputs_first: bool
    shared: tuple[str, ...] = ()

    @property
    def operator(self) -> LinearOperator:
        """How the node reads its weight."""
        return linear_operator(self.node, self.weight)

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
        """The `Constant` whose `values` are the weight (see `Rewriter.set_values`)."""
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
        stored, groups, rows, columns = self.holder.values, self.groups, self.rows, self.columns
        if isinstance(self.unfolding, ConvPatches) and self.inputs_first:
            taps = prod(self.unfolding.kernel)
            # (C_in, C_out/g, k...) -> (g, C_in/g, C_out/g, k) -> (g, C_out/g, C_in/g, k)
            split = stored.reshape(groups, columns // taps, rows, taps)
            return split.transpose(0, 2, 1, 3).reshape(groups, rows, columns)
        if self.inputs_first:
            return stored.reshape(groups, columns, rows).transpose(0, 2, 1)
        return stored.reshape(groups, rows, columns)

    def restored(self, weight: np.ndarray) -> np.ndarray:
        """The inverse of `canonical`: an array for `holder.values`, rounded once to its type."""
        return self.laid_out(weight).astype(self.holder.stored.dtype, copy=False)

    def laid_out(self, weight: np.ndarray) -> np.ndarray:
        """Values or codes in canonical form, laid out as the stored weight, in their own type."""
        stored, groups, rows, columns = self.holder.stored, self.groups, self.rows, self.columns
        if isinstance(self.unfolding, ConvPatches) and self.inputs_first:
            taps = prod(self.unfolding.kernel)
            weight = weight.reshape(groups, rows, columns // taps, taps).transpose(0, 2, 1, 3)
        elif self.inputs_first:
            weight = weight.reshape(groups, rows, columns).transpose(0, 2, 1)
        return np.ascontiguousarray(weight.reshape(stored.shape))


def bias_of(layer: WeightLayer) -> np.ndarray | str:
    """The bias of the layer as (groups, rows), float64, with Gemm's beta; zeros without a bias.

    Returns:
        Why not, in words, where the bias is not constant or not one number for each output.
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
    values = values * layer.operator.bias_scale
    matrix = values.reshape((1,) * (2 - values.ndim) + values.shape)
    along, across = (1, 0) if layer.unfolding.out_axis == -1 else (0, 1)
    if matrix.shape[across] != 1:
        return "its bias is a matrix"
    flat = matrix.reshape(matrix.shape[along])
    return np.broadcast_to(flat, prod(shape)).reshape(shape)


# ---------------------------------------------------------------------------- listing


def weight_layers(graph: gs.Graph) -> tuple[tuple[WeightLayer, ...], tuple[Skip, ...]]:
    """The weight layers of `graph` and its bodies; linear operators that are none, with reasons.

    Nodes inside local functions are not seen.
    """
    layers: list[WeightLayer] = []
    skips: list[Skip] = []
    for current, bodies in _graphs_with_paths(graph):
        for node in current.nodes:
            if not node.is_onnx or node.op not in LINEAR_OPS:
                continue
            found = _layer(node, current, bodies)
            if isinstance(found, str):
                skips.append(Skip(node_label(node), found))
            else:
                layers.append(found)
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
    named = []
    for layer in layers:
        path = [word for node, body in layer.bodies for word in (node_label(node), body)]
        is_repeated = counts[layer.name] > 1
        named.append(replace(layer, name="/".join((*path, layer.name))) if is_repeated else layer)
    return named


def _with_sharers(layers: list[WeightLayer]) -> Iterator[WeightLayer]:
    names = {layer.node: layer.name for layer in layers}
    for layer in layers:
        others = (user for user in layer.weight_tensor.outputs if user is not layer.node)
        shared = dict.fromkeys(names.get(user, node_label(user)) for user in others)
        yield replace(layer, shared=tuple(shared)) if shared else layer


def _layer(node: Node, graph: gs.Graph, bodies: tuple[tuple[Node, str], ...]) -> WeightLayer | str:
    """The layer that `node` is, or why it is none."""
    found = constant_weight(node)
    if isinstance(found, str):
        return found
    operator, shape = found
    if operator.scale == 0:
        return "its alpha is 0, so its weight has no effect"
    rows, columns = operator.matrix_shape(shape)
    return WeightLayer(
        node_label(node),
        node,
        graph,
        bodies,
        operator.data,
        operator.weight,
        operator.bias,
        operator.unfolding(shape),
        rows,
        columns,
        inputs_first=operator.inputs_first and len(shape) > 1,
    )
