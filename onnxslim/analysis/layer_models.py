"""Small models of one layer, or of a few, built from shapes alone, for a stopwatch to time.

The layers need not exist in a model: they may have other channel counts, or be halves of a split
layer. Weights are given by their shapes and filled by a ConstantOfShape, which onnxruntime folds
when it loads the model. So a small model takes a few hundred bytes whatever its weights, and equal
layers give equal bytes, the key under which timings are remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnxslim.graph import counts
from onnxslim.graph.dims import static_shape
from onnxslim.graph.ir import Node, to_onnx_dtype
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes

StaticShape = tuple[int, ...]
Attributes = Mapping[str, Any]

INPUT: Final = "x"
_IR_VERSION: Final = 10
_OPSET: Final = 17
_VALUE: Final = 0.01  # of every weight; products stay far from denormal numbers
_FLOAT32: Final[np.dtype[Any]] = np.dtype(np.float32)


@dataclass(frozen=True)
class LayerOp:
    """An operator of a small model.

    Attributes:
        op: operator of the ONNX standard.
        inputs: names of tensors (`x` is the model's input, "" an absent one), shapes of weights,
            and arrays, of which the values matter.
        output: name of the tensor that it returns.
        attrs: attributes by name.
    """

    op: str
    inputs: tuple[str | StaticShape | np.ndarray, ...]
    output: str
    attrs: Attributes = field(default_factory=dict)

    @property
    def weights(self) -> tuple[StaticShape, ...]:
        """The shapes among the inputs."""
        return tuple(item for item in self.inputs if isinstance(item, tuple))


def small_model(
    x_shape: StaticShape,
    ops: Sequence[LayerOp],
    *,
    dtype: np.dtype[Any] = _FLOAT32,
) -> onnx.ModelProto:
    """A model with the input `x`; it returns the output of the last of `ops`.

    Args:
        x_shape: shape of the input.
        ops: operators, producers first.
        dtype: element type of the input and of all weights.
    """
    nodes: list[onnx.NodeProto] = []
    kind = to_onnx_dtype(dtype)
    for number, op in enumerate(ops):
        # onnxruntime would merge operators with equal weights, and run them once
        value = numpy_helper.from_array(np.array([_VALUE * (1 + number / len(ops))], dtype))
        names = []
        for index, item in enumerate(op.inputs):
            if isinstance(item, str):
                names.append(item)
                continue
            name = f"{op.output}_{index}"
            if isinstance(item, np.ndarray):
                given = numpy_helper.from_array(item)
                nodes.append(helper.make_node("Constant", [], [name], value=given))
                names.append(name)
                continue
            sizes = numpy_helper.from_array(np.array(item, np.int64))
            nodes.append(helper.make_node("Constant", [], [f"{name}_sizes"], value=sizes))
            nodes.append(
                helper.make_node("ConstantOfShape", [f"{name}_sizes"], [name], value=value)
            )
            names.append(name)
        nodes.append(helper.make_node(op.op, names, [op.output], **op.attrs))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(INPUT, kind, x_shape)],
        [onnx.ValueInfoProto(name=ops[-1].output, type=helper.make_tensor_type_proto(kind, None))],
    )
    imports = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=imports)


def op_of(node: Node, data: int, shapes: Sequence[StaticShape | None]) -> LayerOp:
    """The operator `node` with all inputs but `data` as weights.

    Args:
        node: a node of which one output is used.
        data: index of the input that becomes `x`.
        shapes: shapes of the inputs; None where one is absent.
    """
    inputs = tuple(
        INPUT if index == data else ("" if shape is None else shape)
        for index, shape in enumerate(shapes)
    )
    return LayerOp(node.op, inputs, "y", dict(node.attrs))


def input_shape(
    tensor: gs.Tensor, shapes: Mapping[str, StaticShape], *, is_timed: bool
) -> StaticShape | None:
    """The shape of what a layer reads; None where it is not known.

    Args:
        tensor: what the layer reads.
        shapes: of tensors, by name, on the inputs that latency is measured on.
        is_timed: whether the layer is to be timed; where work is only counted and compared, a size
            of the first axis that is open is one.
    """
    if tensor.name in shapes:
        return shapes[tensor.name]
    shape = static_shape(tensor)
    if shape is None and tensor.shape is not None and not is_timed:
        sizes = [1, *tensor.shape[1:]]
        if all(isinstance(size, int) and size > 0 for size in sizes):
            return tuple(int(size) for size in sizes)
    return shape


def count_macs(model: onnx.ModelProto) -> int | None:
    """Multiply-accumulates of a small model; None where a shape cannot be inferred."""
    loaded = Model.load(model)
    infer_shapes(loaded)
    return counts.count_macs(loaded.graph)


def count_weights(ops: Sequence[LayerOp]) -> int:
    """Elements of all weights."""
    return sum(int(np.prod(shape, dtype=np.int64)) for op in ops for shape in op.weights)
