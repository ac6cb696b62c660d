"""The weight layers of a graph in one form: y = W·x with one matrix W per group.

A weight layer is a constant weight that a node reads: Conv, ConvTranspose, Gemm and MatMul have
one, LSTM, GRU and RNN two, and Gather has a table; in bodies too. Every lossy weight pass works on
the canonical weight, (groups, outputs per group, inputs per group), and on vectors x that the
layer's `unfolding` makes of its source tensors:

    Conv            x is a patch, features ordered (channel of the group, kernel position)
    ConvTranspose   x is the patch that the adjoint reads: what meets one output position
    Gemm, MatMul    x is a row, or a column, of the other operand; Gemm's alpha multiplies x
    LSTM, GRU, RNN  x is the input of a step (W) or the hidden state before it (R); a group for each
                    direction, the gates stacked in its rows
    Gather          no x: y is a row of the table

The canonical weight holds the tensor's own values in another order, so `restored` is exact.
`weight_layers` lists all of them; `linear_layers` those whose node returns y and reads the constant
itself, for passes that change how many channels a layer has or what operator it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.linear_operators import (
    INITIAL_STATE,
    LINEAR_OPS,
    RECURRENT_OPS,
    SEQUENCE_LENS,
    WEIGHT_OPS,
    ConvPatches,
    LinearOperator,
    OperatorWeight,
    RecurrentSteps,
    Unfolding,
    Vectors,
    cast_type,
    constant_weight,
    linear_operator,
    operator_weights,
)
from onnxslim.graph.ir import Constant, Node, node_label, subgraphs_of
from onnxslim.graph.operands import const_array, is_present
from onnxslim.records import Skip


@dataclass(frozen=True)
class WeightLayer:
    """A constant weight and the node that reads it.

    Attributes:
        name: name of the node's output tensor, behind that of its body where sibling bodies repeat
            it; of a recurrent operator `name/W` and `name/R`.
        node: one of `WEIGHT_OPS`.
        graph: the graph that holds the node.
        bodies: the nodes in whose bodies the layer lies, outermost first, with the body's name.
        data, weight: indices of the inputs that x and W come from.
        bias: index of the bias input, present or not; None where the operator has none.
        unfolding: how x comes out of the input tensor.
        rows: outputs per group.
        columns: inputs per group.
        inputs_first: whether inputs come before outputs in the weight tensor.
        views: the nodes between the constant and the node, the one at the constant first: Identity,
            Cast and Transpose.
        shared: names of the other layers, and labels of other nodes, that use the same weight
            tensor.
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
    views: tuple[Node, ...] = ()
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
    def is_linear(self) -> bool:
        """Whether the node returns y and reads the constant itself."""
        return self.node.op in LINEAR_OPS and not self.views

    @property
    def sources(self) -> tuple[gs.Tensor | None, ...]:
        """The tensors that x comes from; None where an operand is absent.

        Of the weights of a recurrent operator: inputs or hidden states of the steps, the lengths of
        the sequences, and for R the first hidden state.
        """
        if not isinstance(self.unfolding, RecurrentSteps):
            return (self.node.inputs[self.data],)
        lengths, first = (
            self.node.inputs[index] if is_present(self.node, index) else None
            for index in (SEQUENCE_LENS, INITIAL_STATE)
        )
        if self.unfolding.of_states:
            return self.node.outputs[0], lengths, first
        return self.node.inputs[self.data], lengths

    @property
    def data_tensor(self) -> gs.Tensor:
        """The input that x comes from, of a linear layer."""
        return self.node.inputs[self.data]

    @property
    def weight_tensor(self) -> gs.Tensor:
        """The constant, or the output of the `Constant` node, that holds the weight."""
        return self.views[0].inputs[0] if self.views else self.node.inputs[self.weight]

    @property
    def reader(self) -> Node:
        """The node that reads the weight tensor: the first view, or the layer's own."""
        return self.views[0] if self.views else self.node

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type in which the node gets the weight."""
        casts = [cast_type(view) for view in self.views if view.op == "Cast"]
        return casts[-1] if casts else np.dtype(self.holder.dtype)

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
        if values.shape != (prod(shape),):
            return "its bias is not one number for each output channel"
        return values.reshape(shape)
    if isinstance(layer.unfolding, RecurrentSteps):
        # (directions, 2 * gates * hidden_size): the biases of W, then those of R
        return values.reshape(layer.groups, 2, layer.rows)[:, int(layer.operator.has_second_bias)]
    assert isinstance(layer.unfolding, Vectors), "a table has no bias"
    values = values * layer.operator.bias_scale
    matrix = values.reshape((1,) * (2 - values.ndim) + values.shape)
    along, across = (1, 0) if layer.unfolding.out_axis == -1 else (0, 1)
    if matrix.shape[across] != 1:
        return "its bias is a matrix"
    flat = matrix.reshape(matrix.shape[along])
    return np.broadcast_to(flat, prod(shape)).reshape(shape)


# ---------------------------------------------------------------------------- listing


def weight_layers(graph: gs.Graph) -> tuple[tuple[WeightLayer, ...], tuple[Skip, ...]]:
    """The weight layers of `graph` and its bodies; weights that are none, with reasons.

    Nodes inside local functions are not seen.
    """
    layers: list[WeightLayer] = []
    skips: list[Skip] = []
    for current, bodies in _graphs_with_paths(graph):
        for node in current.nodes:
            if not node.is_onnx or node.op not in WEIGHT_OPS:
                continue
            for weight in operator_weights(node):
                found = weight if isinstance(weight, str) else _layer(weight, current, bodies)
                if isinstance(found, str):
                    skips.append(Skip(node_label(node), found))
                else:
                    layers.append(found)
    return tuple(_with_sharers(_with_unique_names(layers))), tuple(dict.fromkeys(skips))


def linear_layers(graph: gs.Graph) -> tuple[tuple[WeightLayer, ...], tuple[Skip, ...]]:
    """The weight layers whose node returns y and reads the constant itself; such as are none."""
    layers, skips = weight_layers(graph)
    viewed = [
        Skip(node_label(layer.node), why)
        for layer in layers
        if layer.views
        and layer.node.op in LINEAR_OPS
        and isinstance(why := constant_weight(layer.node), str)
    ]
    products = {
        node_label(node)
        for current, _ in _graphs_with_paths(graph)
        for node in current.nodes
        if node.op in LINEAR_OPS
    }
    skips = (*(skip for skip in skips if skip.node in products), *viewed)
    return tuple(layer for layer in layers if layer.is_linear), skips


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
    names: dict[tuple[Node, int], list[str]] = {}
    for layer in layers:
        names.setdefault((layer.reader, id(layer.weight_tensor)), []).append(layer.name)
    for layer in layers:
        tensor = layer.weight_tensor
        shared = [
            name
            for user in dict.fromkeys(tensor.outputs)
            for name in names.get((user, id(tensor)), [node_label(user)])
            if name != layer.name
        ]
        yield replace(layer, shared=tuple(dict.fromkeys(shared))) if shared else layer


def _layer(
    weight: OperatorWeight, graph: gs.Graph, bodies: tuple[tuple[Node, str], ...]
) -> WeightLayer | str:
    """The layer of a weight, or why it is none."""
    operator, shape = weight.operator, weight.shape
    if operator.scale == 0:
        return "its alpha is 0, so its weight has no effect"
    rows, columns = operator.matrix_shape(shape)
    label = node_label(operator.node)
    if operator.node.op in RECURRENT_OPS:
        label = f"{label}/{'R' if operator.has_second_bias else 'W'}"
    return WeightLayer(
        label,
        operator.node,
        graph,
        bodies,
        operator.data,
        operator.weight,
        operator.bias,
        operator.unfolding(shape),
        rows,
        columns,
        inputs_first=operator.inputs_first and len(shape) > 1,
        views=weight.views,
    )
