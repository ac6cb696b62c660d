"""Operators on integers, or in float16, in float32: for engines that have no others.

What comes out is nearer to the model before it was quantized, and not the same.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import (
    MICROSOFT_DOMAIN,
    Constant,
    Graph,
    Node,
    Variable,
    node_label,
    subgraphs_of,
    walk_graphs,
)
from onnxslim.graph.operands import const_array, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lowering.code_forms import CodedTensor, CodeWriter
from onnxslim.lowering.obstacles import zero_point_of
from onnxslim.lowering.zero_points import clipped, grid_ends
from onnxslim.pipeline.targets import TargetEngine
from onnxslim.records import Fidelity

_HALF: Final = np.dtype(np.float16)
_RECURRENT: Final = 8  # inputs of LSTM; those of DynamicQuantizeLSTM go on with scales
_FLOAT: Final = np.dtype(np.float32)
_PRODUCTS: Final = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_MOVED: Final = "ranges are not found at run time any more"


def drop_pairs(rw: Rewriter) -> None:
    """Put a Clip in place of QuantizeLinear and the DequantizeLinear behind it."""
    for node in rw.walk("DequantizeLinear"):
        source = rw.producer(node.inputs[0], "QuantizeLinear")
        if source is None or not _same_grid(source, node):
            continue
        scale = const_array(source.inputs[1])
        if scale is None or (is_present(source, 2) and zero_point_of(source) is None):
            continue
        least, most = grid_ends(source, scale, zero_point_of(source))
        ends = float(least.min()), float(most.max())
        made = clipped(rw, source, *ends)
        rw.substitute(node, made, "the tensor stays float, within its range", Fidelity.LOSSY)


def _same_grid(first: Node, second: Node) -> bool:
    for a, b in zip(first.inputs[1:], second.inputs[1:], strict=False):
        one, other = const_array(a), const_array(b)
        if a is not b and (one is None or other is None or not np.array_equal(one, other)):
            return False
    return len(first.inputs) == len(second.inputs)


def float_recurrent(rw: Rewriter) -> None:
    """Compute onnxruntime's DynamicQuantizeLSTM as an LSTM whose weights are floats.

    Many engines read the weights of an LSTM as constants alone, so these are not behind codes.
    """
    for node in rw.walk("DynamicQuantizeLSTM", domain=MICROSOFT_DOMAIN):
        given = node.inputs[_RECURRENT:]
        arrays = [const_array(tensor) for tensor in (node.inputs[1], node.inputs[2], *given)]
        if any(array is None for array in arrays) or len(given) != 4:
            rw.skip(node, "its weights are computed at run time")
            continue
        codes, scales, zeros = arrays[:2], arrays[2::2], arrays[3::2]
        inputs = list(node.inputs[:_RECURRENT])
        for index, parts in enumerate(zip(codes, scales, zeros, strict=True), 1):
            values = _turned(*parts)  # type: ignore[arg-type]
            inputs[index] = rw.constant(values, f"{node.inputs[index].name}_float")
        what = "DynamicQuantizeLSTM became an LSTM in float32"
        rw.update(
            node,
            what,
            op="LSTM",
            inputs=inputs,
            attrs=dict(node.attrs),
            fidelity=Fidelity.LOSSY,
        )


def _turned(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Weights (directions, 4 * hidden_size, columns) of codes whose last two axes are turned.

    Scales and zero points are (directions,) or (directions, 4 * hidden_size).
    """
    scales, zeros = (a.reshape(len(codes), 1, -1) for a in (scale, zero.astype(np.int32)))
    values = (codes.astype(np.int32) - zeros).astype(scale.dtype) * scales
    return np.ascontiguousarray(values.transpose(0, 2, 1))


def static_products(rw: Rewriter, target: TargetEngine) -> None:
    """Compute products whose ranges are found at run time on floats.

    With x in place of its codes, 1 in place of its scale and 0 of its zero point, the nodes around
    stay as they are: scale·(code − zero point) is x, up to what the codes rounded.
    """
    for node in rw.walk(*_PRODUCTS):
        maker = rw.producer(node.inputs[0], "DynamicQuantizeLinear")
        codes = const_array(node.inputs[1])
        zero = const_array(node.inputs[3]) if is_present(node, 3) else np.zeros((), np.uint8)
        casts = [user for user in node.outputs[0].outputs if user.op == "Cast"]
        is_alone = len(casts) == len(node.outputs[0].outputs)
        if maker is None or codes is None or zero is None or not is_alone:
            continue
        weight = codes.astype(np.int32) - zero.astype(np.int32)
        name = f"{node.inputs[1].name}_signed"
        stored: gs.Tensor
        if weight.min() >= -128 and weight.max() <= 127:
            one, none = np.ones((), np.float32), np.zeros((), np.int32)
            coded = CodedTensor(weight, one, none, axis=0, block=0, is_short=False)
            stored = CodeWriter(rw, target).written(node, coded, name)
        else:
            stored = rw.constant(weight.astype(np.float32), name)
        node.outputs[0].dtype = _FLOAT
        inputs, op = [maker.inputs[0], stored], _PRODUCTS[node.op]
        rw.update(
            node, _MOVED, op=op, inputs=inputs, attrs=dict(node.attrs), fidelity=Fidelity.LOSSY
        )
        for cast_node in casts:
            rw.substitute(cast_node, node.outputs[0], "the product is float already")
    for node in rw.walk("DynamicQuantizeLinear"):
        if rw.uses(node.outputs[0]) or rw.uses(node.outputs[2]):
            continue
        one = rw.constant(np.ones((), np.float32), f"{node.outputs[1].name}_one")
        if rw.is_output(node.outputs[1]):
            continue
        rw.redirect(node.outputs[1], one)
        rw.remove(node, _MOVED)


# ---------------------------------------------------------------------------- float16


def widen(rw: Rewriter) -> None:
    """Compute in float32 what computes in float16; weights stay float16 behind a Cast.

    Inputs and outputs keep their types, by a Cast each.
    """
    held = next((node for node in rw.main.nodes if _is_half_inside(node)), None)
    if held is not None:
        rw.skip(held, "its body computes in float16, and only a whole model is moved to float32")
        return
    wide = _WideGraph(rw)
    for graph in list(rw.graphs()):
        wide.widen(graph)


class _WideGraph:
    def __init__(self, rw: Rewriter) -> None:
        self.rw = rw
        self.given = set(rw.main.inputs)

    def widen(self, graph: Graph) -> None:
        for node in list(graph.nodes):
            if node.op == "Cast" and int(node.attrs.get("to", 0)) == onnx.TensorProto.FLOAT:
                continue  # it reads float16 that is stored, given or widened before
            self._node(node)

    def _node(self, node: Node) -> None:
        is_touched = False
        for index, tensor in enumerate(node.inputs):
            if _is_half(tensor) and node.op != "Cast":
                self.rw.set_input(node, index, self._read(node, tensor))
                is_touched = True
        for name, value in node.attrs.items():
            if name in ("to", "dtype") and value == onnx.TensorProto.FLOAT16:
                node.attrs[name] = onnx.TensorProto.FLOAT
                is_touched = True
            elif isinstance(value, Constant) and value.dtype == _HALF and node.op != "Constant":
                node.attrs[name] = Constant(value.name, np.asarray(value.values, np.float32))
                is_touched = True
        if node.op == "Constant":
            return
        made = [tensor for tensor in node.outputs if _is_half(tensor)]
        if made:
            self._make(node, made)
            is_touched = True
        if is_touched:
            what = f"{node.op} computes in float32"
            self.rw.note(node_label(node), what, Fidelity.CLOSE)

    def _read(self, node: Node, tensor: gs.Tensor) -> gs.Tensor:
        """The float32 tensor that a node reads in place of a stored or given float16."""
        is_made = isinstance(tensor, Variable) and tensor not in self.given
        if is_made and tensor.inputs and tensor.inputs[0].op != "Constant":
            return tensor  # what makes it becomes float32
        cast = {"to": onnx.TensorProto.FLOAT}
        shape = None if tensor.shape is None else list(tensor.shape)
        (made,) = self.rw.insert(
            node, "Cast", [tensor], cast, name=f"{tensor.name}_wide", dtype=_FLOAT, shape=shape
        )
        return made

    def _make(self, node: Node, made: list[Variable]) -> None:
        """Let a node make float32; where the model returns a tensor, a Cast returns float16."""
        returned = [t for t in made if any(t is output for output in self.rw.main.outputs)]
        if not returned:
            for tensor in made:
                tensor.dtype, tensor.info = _FLOAT, None
            return
        results: list[gs.Tensor] = []
        for tensor, wide in zip(list(node.outputs), self.rw.copied(node, "wide"), strict=True):
            if tensor in made:
                wide.dtype = _FLOAT
            for user in list(tensor.outputs):
                for index, given in enumerate(user.inputs):
                    if given is tensor:
                        self.rw.set_input(user, index, wide)
            if tensor in returned:
                cast = {"to": onnx.TensorProto.FLOAT16}
                name = f"{tensor.name}_half"
                shape = None if tensor.shape is None else list(tensor.shape)
                results += self.rw.insert(
                    node, "Cast", [wide], cast, name=name, dtype=_HALF, shape=shape
                )
            else:
                results.append(wide)
        self.rw.replace(node, results, "the output keeps its type by a Cast")


def _is_half_inside(node: gs.Node) -> bool:
    """Whether a body of the node has float16, among what it takes and returns too."""
    return any(
        _is_half(tensor)
        for body in subgraphs_of(node)
        for graph in walk_graphs(body)
        for tensors in (graph.inputs, graph.outputs, *((n.inputs) for n in graph.nodes))
        for tensor in tensors
    )


def _is_half(tensor: gs.Tensor) -> bool:
    return bool(tensor.name and tensor.dtype is not None and tensor.dtype == _HALF)
