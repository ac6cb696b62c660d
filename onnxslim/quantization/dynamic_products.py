"""MatMul and Gemm on integers whose ranges are found at run time, from the values themselves.

    q, s, z = DynamicQuantizeLinear (x)
    p = MatMulInteger (q, w_codes, z)
    f = Cast <to: int = 1> (p)
    r = Mul (s, w_scale)
    y = Mul (f, r)                        (and an Add of the bias, as it was)

Onnxruntime runs this as one kernel, DynamicQuantizeMatMul, with the bias inside; where several
products read x, as MatMulIntegerToFloat behind one DynamicQuantizeLinear. The input and the output
stay float, so no other operator has to be on integers, and outliers of one run cost another run
nothing.

Owns: the form. Not here: which products take it (see `rules`), and its codes (see `layer_codes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.linear_operators import linear_operator
from onnxslim.graph.ir import Constant, Node, Variable
from onnxslim.graph.operands import const_array, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.quantization.grid import Grid, LayerCodes
from onnxslim.records import Fidelity


def objection_to_dynamic(node: Node) -> str | None:
    """Why a MatMul or Gemm cannot find the range of its input at run time; None where it can."""
    operator = linear_operator(node)
    weight = const_array(node.inputs[operator.weight])
    if weight is None:
        return "its weight is computed at run time"
    if weight.ndim != 2 or operator.in_axis == -2:
        return "its weight is no matrix that multiplies from the right"
    if node.inputs[operator.data].dtype != np.float32:
        return f"its input `{node.inputs[operator.data].name}` is not float32"
    if const_array(node.inputs[operator.data]) is not None:
        return "it only has constants"
    if operator.bias_scale != 1.0 and operator.bias is not None:
        return "beta is not 1"
    return None if np.isfinite(weight).all() else "its weight is not finite"


@dataclass(frozen=True)
class DynamicInput:
    """An activation as DynamicQuantizeLinear makes it: codes, scale and zero point."""

    codes: gs.Tensor
    scale: gs.Tensor
    zero_point: gs.Tensor


def dynamic_input(rewriter: Rewriter, before: Node, tensor: gs.Tensor) -> DynamicInput:
    """Put a DynamicQuantizeLinear of `tensor` in front of `before`."""
    codes, scale, zero = rewriter.insert(
        before,
        "DynamicQuantizeLinear",
        [tensor],
        name=f"{tensor.name}_quantized",
        outputs=3,
    )
    codes.dtype = zero.dtype = np.dtype(np.uint8)
    codes.shape, scale.dtype = tensor.shape, np.dtype(np.float32)
    scale.shape = zero.shape = []
    return DynamicInput(codes, scale, zero)


def to_dynamic_product(
    rewriter: Rewriter,
    node: Node,
    source: DynamicInput,
    layer: LayerCodes,
    words: str,
    stored: Callable[[str, np.ndarray], gs.Tensor],
) -> list[Variable]:
    """Let `node` multiply integers.

    Args:
        rewriter: of the graph.
        node: a MatMul or Gemm without objection; it becomes the last node of the form.
        source: its input.
        layer: its weight; scales go by output, or there is one. Without a bias, that of the node
            stays as it is.
        words: what the report says.
        stored: gives the tensor of a matrix of codes, and gets a wish for its name.

    Returns:
        What the inserted nodes make.
    """
    operator, name, grid = linear_operator(node), node.outputs[0].name, layer.grid
    # (inputs, outputs)
    matrix = layer.codes if operator.inputs_first else np.ascontiguousarray(layer.codes.T)
    scale = np.asarray(grid.scale * np.float32(operator.scale), np.float32)
    weight = node.inputs[operator.weight].name
    inputs = [
        source.codes,
        stored(f"{weight}_codes", matrix),
        source.zero_point,
        *_zero_point(rewriter, grid, weight),
    ]
    float32, shape = np.dtype(np.float32), node.outputs[0].shape

    def insert(op: str, operands: list[gs.Tensor], dtype: np.dtype[np.generic]) -> Variable:
        attrs = {"to": onnx.TensorProto.FLOAT} if op == "Cast" else {}
        (made,) = rewriter.insert(
            node, op, operands, attrs, name=f"{name}_part", dtype=dtype, shape=shape
        )
        return made

    sums = insert("MatMulInteger", inputs, np.dtype(np.int32))
    floats = insert("Cast", [sums], float32)
    own = rewriter.constant(scale, f"{weight}_scale")
    (steps,) = rewriter.insert(
        node, "Mul", [source.scale, own], name=f"{weight}_step", dtype=float32
    )
    made = [sums, floats, steps]
    op, operands = "Mul", [floats, steps]
    addend = _addend(rewriter, node, operator.bias, layer.bias)
    if addend is not None:
        made.append(insert(op, operands, float32))
        op, operands = "Add", [made[-1], addend]
    rewriter.update(node, words, op=op, inputs=operands, attrs={}, fidelity=Fidelity.LOSSY)
    return made


def _zero_point(rewriter: Rewriter, grid: Grid, name: str) -> list[Constant]:
    """The operand for the zero point of a weight: one where all are equal, none where it is 0."""
    zero = np.asarray(grid.zero_point)
    if not zero.any():
        return []
    same = zero.reshape(-1)[0] if (zero == zero.reshape(-1)[0]).all() else zero
    return [rewriter.constant(np.asarray(same), f"{name}_zero_point")]


def _addend(
    rewriter: Rewriter, node: Node, index: int | None, bias: np.ndarray | None
) -> gs.Tensor | None:
    if index is None or not is_present(node, index):
        return None
    old: gs.Tensor = node.inputs[index]
    return old if bias is None else rewriter.constant(bias.astype(np.float32), old.name)
