"""A graph with QuantizeLinear and DequantizeLinear around the clusters that were chosen.

Owns: the form in which onnxruntime recognizes integer kernels, which is

    x ─ Q ─ DQ ─┐
    int8 W ─ DQ ┼─ Conv ─ Q ─ DQ ─ y        (int32 b ─ DQ is the third input)

An activation goes through one QuantizeLinear. Float nodes that read a float tensor keep reading it.
The output of an integer kernel is read by all nodes through its DequantizeLinear, under the
tensor's own name, so graph outputs and bodies of If and Loop see no difference. Between integer
kernels onnxruntime drops the pair. Kernels that read and make floats have forms of their own.
Onnxruntime also makes integer kernels of operators that should stay in float; a Clip without
bounds, which changes no value, keeps them in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.linear_operators import linear_operator
from onnxslim.graph.ir import Constant, Node, Variable, node_label
from onnxslim.graph.operands import is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.quantization.activation_grids import constant_grid, constant_operand
from onnxslim.quantization.biases import with_bias
from onnxslim.quantization.clusters import Cluster, Clusters, clusters_of
from onnxslim.quantization.dynamic_products import (
    DynamicInput,
    dynamic_input,
    to_dynamic_product,
)
from onnxslim.quantization.grid import U8, Codes, Grid, GridForm, LayerCodes
from onnxslim.quantization.kernel_forms import channel_map
from onnxslim.quantization.recurrent import to_dynamic_lstm
from onnxslim.quantization.rules import ActivationRanges, KernelKind
from onnxslim.quantization.weight_nodes import RowPicking
from onnxslim.quantization.weight_scales import DEFAULT_FORM, WeightForm
from onnxslim.records import Fidelity


@dataclass(frozen=True)
class QdqPlan:
    """Which clusters become integer kernels, with all grids and codes.

    Attributes:
        chosen: names of the clusters.
        grids: the grids of activations, by the tensor's name.
        layers: the weights of layers, by the name of the cluster.
        constants: the form of the grids of constant operands.
        recurrent: the form of the weights of recurrent layers.
        ranges: where the ranges of inputs of MatMul and Gemm come from.
    """

    chosen: frozenset[str]
    grids: Mapping[str, Grid]
    layers: Mapping[str, LayerCodes]
    constants: GridForm = U8
    recurrent: WeightForm = DEFAULT_FORM
    ranges: ActivationRanges = ActivationRanges.STATIC


QdqPlanner = Callable[[frozenset[str]], QdqPlan]
"""Gives the grids and codes for a choice of clusters."""


@dataclass
class InsertedNodes:
    """The nodes of clusters and conversions in the new graph, by their first outputs.

    Attributes:
        clusters: the name of the cluster that a node belongs to.
        crossings: the name of the tensor that a QuantizeLinear or DequantizeLinear converts.
    """

    clusters: dict[str, str] = field(default_factory=dict)
    crossings: dict[str, str] = field(default_factory=dict)


def quantized_copy(model: Model, plan: QdqPlan) -> Model:
    """A copy of `model` with `plan` written into it."""
    copy = model.clone()
    quantize(copy, plan)
    return copy


def quantize(model: Model, plan: QdqPlan) -> InsertedNodes:
    """Write `plan` into `model`."""
    rewriter = Rewriter(model.graph)
    inserted = insert_qdq(rewriter, clusters_of(model.graph, plan.ranges), plan)
    rewriter.result()
    model.has_shapes = False
    return inserted


def insert_qdq(rewriter: Rewriter, clusters: Clusters, plan: QdqPlan) -> InsertedNodes:
    """Write `plan` into the graph of `clusters`; the caller takes the rewriter's result."""
    writer = _QdqWriter(rewriter, clusters, plan)
    chosen = [cluster for cluster in clusters.all if cluster.name in plan.chosen]
    writer.look_up(chosen)
    for cluster in chosen:
        writer.quantize_inputs(cluster)
    for cluster in clusters.all:
        if cluster.name not in plan.chosen:
            writer.keep_in_float(cluster)
    for cluster in chosen:
        writer.quantize_outputs(cluster)
    return writer.inserted


def grid_source(clusters: Clusters, chosen: Iterable[str], tensor: gs.Tensor) -> gs.Tensor:
    """The tensor whose grid `tensor` is on: data movement keeps the grid of its input."""
    names = frozenset(chosen)
    while True:
        maker = clusters.maker(tensor)
        if maker is None or maker.name not in names or maker.rule.kind is not KernelKind.MOVEMENT:
            return tensor
        tensor = maker.node.inputs[0]


@dataclass
class _QdqWriter:
    rewriter: Rewriter
    clusters: Clusters
    plan: QdqPlan
    inserted: InsertedNodes = field(default_factory=InsertedNodes)
    _constants: dict[object, Constant] = field(default_factory=dict)
    _readable: dict[gs.Tensor, gs.Tensor] = field(default_factory=dict)
    _sources: dict[gs.Tensor, Grid] = field(default_factory=dict)
    _dynamic: dict[gs.Tensor, DynamicInput] = field(default_factory=dict)

    def look_up(self, chosen: Iterable[Cluster]) -> None:
        """Find the grid of every tensor while the graph still shows what moves where."""
        for cluster in chosen:
            for tensor in cluster.tensors:
                source = grid_source(self.clusters, self.plan.chosen, tensor)
                self._sources[tensor] = self.plan.grids[source.name]

    # ----------------------------------------------------------------- inputs

    def quantize_inputs(self, cluster: Cluster) -> None:
        """Put QuantizeLinear and DequantizeLinear before the inputs of a cluster."""
        node = cluster.node
        if cluster.rule.kind.is_between_floats:
            self._quantize_between_floats(cluster)
            return
        if cluster.rule.kind is KernelKind.CHANNEL_MAP:
            self._to_conv(cluster)
        inputs = [self._sources.get(tensor) for tensor in node.inputs]
        for index in cluster.operands:
            values = constant_operand(node.inputs[index])
            if values is None:
                self.rewriter.set_input(node, index, self._read(node, node.inputs[index]))
            else:
                grid = constant_grid(values, self.plan.constants)
                self._set_constant(node, index, grid.quantized(values), grid)
        if cluster.rule.kind in (KernelKind.LAYER, KernelKind.CHANNEL_MAP):
            assert inputs[0] is not None
            self._quantize_layer(cluster, inputs[0])

    def _quantize_between_floats(self, cluster: Cluster) -> None:
        """Write a kernel that reads and makes floats."""
        rewriter, node = self.rewriter, cluster.node
        if cluster.rule.kind is KernelKind.RECURRENT:
            to_dynamic_lstm(rewriter, node, self.plan.recurrent)
            return
        layer, words = self.plan.layers[cluster.name], self._words(cluster)
        if cluster.rule.kind is KernelKind.TABLE:
            made = self._pick_rows(node, layer, words)
        else:
            data: gs.Tensor = node.inputs[linear_operator(node).data]
            if data not in self._dynamic:
                self._dynamic[data] = dynamic_input(rewriter, node, data)
                self.inserted.clusters[self._dynamic[data].codes.name] = cluster.name
            source, stored = self._dynamic[data], partial(self._matrix, node)
            made = to_dynamic_product(rewriter, node, source, layer, words, stored)
        self.inserted.clusters.update((tensor.name, cluster.name) for tensor in made)

    def _pick_rows(self, node: Node, layer: LayerCodes, words: str) -> list[Variable]:
        """Let a Gather pick rows of codes and of scales, and make floats of them."""
        (table, indices), picking = node.inputs, RowPicking(self.rewriter, node)
        codes = self._constant(f"{table.name}_codes", layer.codes)
        scale = self._constant(f"{table.name}_scale", layer.grid.scale.reshape(-1, 1))
        rows, own = picking.rows(codes, indices), picking.rows(scale, indices)
        floats, made = picking.cast(rows, np.float32), [rows, own]
        if layer.factor is not None:
            made.append(floats)
            factor = self._constant(f"{table.name}_factor", layer.factor)
            floats = picking.add("Mul", [floats, factor])
        lossy = Fidelity.LOSSY
        self.rewriter.update(node, words, op="Mul", inputs=[floats, own], attrs={}, fidelity=lossy)
        return [*made, floats]

    def _to_conv(self, cluster: Cluster) -> None:
        node, found = cluster.node, channel_map(cluster.node)
        assert not isinstance(found, str)
        self.rewriter.update(
            node,
            f"{node.op} became a depthwise Conv",
            op="Conv",
            inputs=[
                node.inputs[0],
                self._constant(f"{cluster.name}_factor", found.weight),
                self._constant(f"{cluster.name}_offset", found.bias),
            ],
            attrs=found.attributes,
            fidelity=Fidelity.CLOSE,
        )

    def _read(self, node: Node, tensor: gs.Tensor) -> gs.Tensor:
        """The dequantized tensor that an integer kernel reads in place of `tensor`."""
        if self._is_of_integers(tensor):
            return tensor  # its DequantizeLinear will make it
        if tensor not in self._readable:
            source = self._clipped(node, tensor) if self._is_dragged(tensor) else tensor
            self._readable[tensor] = self._pair(node, source, tensor, self._sources[tensor])
        return self._readable[tensor]

    def _is_dragged(self, tensor: gs.Tensor) -> bool:
        """Whether onnxruntime would put a QuantizeLinear of `tensor` in front of what makes it.

        It does so with a MaxPool between floats, which then runs on integers in a layout without a
        fast kernel: 1.5 ms and not 0.3 in AlexNet. Other operators that it does this to move data.
        """
        if not tensor.inputs or tensor.inputs[0].op != "MaxPool":
            return False
        return not self._is_of_integers(tensor.inputs[0].inputs[0])

    def _is_of_integers(self, tensor: gs.Tensor) -> bool:
        """Whether an integer kernel makes `tensor`."""
        maker = self.clusters.maker(tensor)
        return maker is not None and maker.name in self.plan.chosen

    def keep_in_float(self, cluster: Cluster) -> None:
        """Keep onnxruntime from making an integer kernel of a float cluster between integer ones.

        The cluster stands between DequantizeLinear and QuantizeLinear, which is the form that
        onnxruntime fuses; it even quantizes float weights itself. A Clip without bounds before the
        cluster breaks up that form; its time counts as the cluster's.
        """
        if cluster.rule.kind not in (KernelKind.LAYER, KernelKind.PLAIN):
            return  # others have no such form, and moving integers is never slower
        operands = [cluster.node.inputs[index] for index in cluster.operands]
        if not all(map(self._is_of_integers, operands)):
            return
        for tensor in cluster.makes:
            readers = {reader.op for reader in tensor.outputs}
            if readers != {"QuantizeLinear"} or tensor in self.clusters.outside:
                return
        made = self._clipped(cluster.node, operands[0])
        self.rewriter.set_input(cluster.node, cluster.operands[0], made)
        self.inserted.clusters[made.name] = cluster.name

    def _clipped(self, before: Node, tensor: gs.Tensor) -> Variable:
        """`tensor` through a Clip without bounds; a QuantizeLinear behind it would absorb it."""
        (made,) = self.rewriter.insert(
            before,
            "Clip",
            [tensor],
            name=f"{tensor.name}_in_float",
            dtype=np.dtype(np.float32),
            shape=tensor.shape,
        )
        return made

    def _quantize_layer(self, cluster: Cluster, data: Grid) -> None:
        node, layer = cluster.node, self.plan.layers[cluster.name]
        operator = linear_operator(node)
        if layer.bias is None:
            self._set_constant(node, operator.weight, layer.codes, layer.grid)
            return
        assert operator.bias is not None
        has_bias = is_present(node, operator.bias)
        wish = node.inputs[operator.bias].name if has_bias else f"{cluster.name}_bias"
        codes, grid, bias, bias_grid = with_bias(
            layer.codes, layer.grid, layer.bias, float(data.scale)
        )
        self._set_constant(node, operator.weight, codes, grid)
        self._set_constant(node, operator.bias, bias, bias_grid, wish)

    def _set_constant(
        self, node: Node, index: int, codes: Codes, grid: Grid, wish: str | None = None
    ) -> None:
        """Let `node` read integers, through a DequantizeLinear of its own."""
        old = node.inputs[index] if index < len(node.inputs) else None
        name = wish or (old.name if old is not None else node_label(node))
        stored = self._constant(f"{name}_codes", codes)
        attrs = {} if grid.axis is None else {"axis": grid.axis}
        (made,) = self.rewriter.insert(
            node,
            "DequantizeLinear",
            [stored, *self._parameters(name, grid)],
            attrs,
            name=f"{name}_dequantized",
            dtype=np.dtype(np.float32),
            shape=list(codes.shape),
        )
        self.rewriter.set_input(node, index, made)

    # ----------------------------------------------------------------- outputs

    def quantize_outputs(self, cluster: Cluster) -> None:
        """Put QuantizeLinear and DequantizeLinear behind the outputs of a cluster."""
        node = cluster.nodes[-1]
        if cluster.rule.kind.is_between_floats:
            return
        if cluster.activation is not None:
            self.inserted.clusters[node_label(cluster.node)] = cluster.name
            inner = [cluster.node.outputs[0]]
        else:
            inner = self.rewriter.copied(node, "float")
            self.inserted.clusters[inner[0].name] = cluster.name
        words = self._words(cluster)
        if len(node.outputs) == 1:
            (output,) = node.outputs
            codes = self._quantized(node, inner[0], output, self._sources[output])
            self.inserted.crossings[output.name] = output.name
            self.rewriter.update(
                node,
                words,
                op="DequantizeLinear",
                inputs=[codes, *self._parameters(output.name, self._sources[output])],
                attrs={},
                fidelity=Fidelity.LOSSY,
            )
            return
        results = [
            self._pair(node, made, output, self._sources[output]) if output.name else made
            for made, output in zip(inner, node.outputs, strict=True)
        ]
        self.rewriter.replace(node, results, words)
        self.rewriter.fidelity = Fidelity.LOSSY

    # ----------------------------------------------------------------- pairs

    def _pair(self, before: Node, source: gs.Tensor, named: gs.Tensor, grid: Grid) -> Variable:
        """`source` through QuantizeLinear and DequantizeLinear."""
        codes = self._quantized(before, source, named, grid)
        (made,) = self.rewriter.insert(
            before,
            "DequantizeLinear",
            [codes, *self._parameters(named.name, grid)],
            name=f"{named.name}_dequantized",
            dtype=np.dtype(np.float32),
            shape=named.shape,
        )
        self.inserted.crossings[made.name] = named.name
        return made

    def _quantized(self, before: Node, source: gs.Tensor, named: gs.Tensor, grid: Grid) -> Variable:
        (codes,) = self.rewriter.insert(
            before,
            "QuantizeLinear",
            [source, *self._parameters(named.name, grid)],
            name=f"{named.name}_quantized",
            dtype=grid.dtype,
            shape=named.shape,
        )
        self.inserted.crossings[codes.name] = named.name
        return codes

    def _parameters(self, name: str, grid: Grid) -> tuple[Constant, Constant]:
        scale = self._constant(f"{name}_scale", np.asarray(grid.scale))
        return scale, self._constant(f"{name}_zero_point", np.asarray(grid.zero_point))

    def _constant(self, wish: str, values: np.ndarray) -> Constant:
        """A constant; equal constants are stored once, so shared weights stay shared."""
        key = _key(values)
        if key not in self._constants:
            self._constants[key] = self.rewriter.constant(values.copy(), wish)
        return self._constants[key]

    def _matrix(self, before: Node, wish: str, codes: Codes) -> gs.Tensor:
        """A constant matrix; one whose transpose is stored, too, takes no bytes for itself.

        Onnxruntime transposes constants when a session starts.
        """
        if any(found.shape == codes.shape[::-1] for found in self._constants.values()):
            other = self._constants.get(_key(np.ascontiguousarray(codes.T)))
            if other is not None:
                made = self.rewriter.insert(
                    before,
                    "Transpose",
                    [other],
                    {"perm": [1, 0]},
                    name=wish,
                    dtype=codes.dtype,
                    shape=codes.shape,
                )
                return made[0]
        return self._constant(wish, codes)

    def _words(self, cluster: Cluster) -> str:
        kernel = cluster.rule.kernel or f"{cluster.node.op} on integers"
        words = f"{cluster.node.op} became {kernel}"
        if cluster.rule.kind is KernelKind.MOVEMENT:
            words = f"{cluster.node.op} moves integers"
        if cluster.activation is not None:
            words += f", which its {cluster.activation.op} is part of"
        layer = self.plan.layers.get(cluster.name)
        return f"{words}; {layer.words}" if layer is not None and layer.words else words


def _key(values: np.ndarray) -> object:
    """What equal constants have in common, and no others."""
    return values.dtype.str, values.shape, sha1(np.ascontiguousarray(values).data).digest()
