"""Which operators onnxruntime computes on integers, and under which conditions.

Such an operator becomes an integer kernel between DequantizeLinear and QuantizeLinear (see `qdq`).

Owns: the table `_RULES`. It was read off onnxruntime's optimized models; a test builds a node for
every row and holds the installed onnxruntime to it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.linear_operators import linear_operator
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, is_present
from onnxslim.quantization.dynamic_products import objection_to_dynamic
from onnxslim.quantization.grid import GridForm
from onnxslim.quantization.kernel_forms import channel_map
from onnxslim.quantization.recurrent import KERNEL, objection_to_lstm
from onnxslim.quantization.weight_readers import picks_rows

Objection = Callable[[Node], str | None]


class KernelKind(enum.Enum):
    """How an operator is computed on integers.

    LAYER: its weight becomes int8, its bias int32; the output has a grid of its own.
    PLAIN: every float operand has a grid, and the output has a grid of its own.
    CHANNEL_MAP: it becomes a depthwise Conv, which is a layer (see `kernel_forms`).
    MOVEMENT: it only moves or selects values, so the output is on the input's grid.
    RECURRENT: its inputs and outputs stay float; its weights become int8 (see `recurrent`).
    DYNAMIC: its input and output stay float, the range of its input is found at run time; its
        weight becomes int8 (see `dynamic_products`).
    TABLE: its rows become int8, and floats again where they are picked.
    """

    LAYER = "layer"
    PLAIN = "plain"
    CHANNEL_MAP = "channel map"
    MOVEMENT = "movement"
    RECURRENT = "recurrent"
    DYNAMIC = "dynamic"
    TABLE = "table"

    @property
    def is_between_floats(self) -> bool:
        """Whether it reads and makes floats, so that no tensor has to cross to integers for it."""
        return self in (KernelKind.RECURRENT, KernelKind.DYNAMIC, KernelKind.TABLE)


class ActivationRanges(enum.StrEnum):
    """Where the range of an activation comes from.

    STATIC: from calibration samples. DYNAMIC: of the inputs of MatMul and Gemm, from the values
    themselves, in every run.
    """

    STATIC = "static"
    DYNAMIC = "dynamic"


@dataclass(frozen=True)
class IntegerRule:
    """How one operator is computed on integers.

    Attributes:
        kind: how the operator is computed on integers.
        kernel: the integer operator that onnxruntime makes of it; "": the same operator.
        data: indices of the inputs that are quantized activations; None: all inputs.
        objection: why a node of this operator has no integer kernel; None where it has one.
        fixed: the range that the output's grid must cover for the kernel; None: any range.
        no_answer: why the operator stays float where its result is an answer; "": it need not.
    """

    kind: KernelKind
    kernel: str = ""
    data: tuple[int, ...] | None = (0,)
    objection: Objection = lambda _node: None
    fixed: Callable[[GridForm], tuple[float, float]] | None = None
    no_answer: str = ""


def rule_of(node: Node, ranges: ActivationRanges = ActivationRanges.STATIC) -> IntegerRule | str:
    """The rule for `node`, or why it is computed in float."""
    if not node.is_onnx:
        return f"operators of the domain {node.domain} have no integer kernel"
    between_floats = [_TABLE] if node.op == "Gather" else []
    if ranges is ActivationRanges.DYNAMIC and node.op in ("MatMul", "Gemm"):
        between_floats.append(_PRODUCT)
    found = next((rule for rule in between_floats if rule.objection(node) is None), None)
    if found is not None:
        return found
    rule = _RULES.get(node.op)
    if rule is None:
        return _FLOAT.get(node.op, f"onnxruntime has no integer kernel for {node.op}")
    if node.op == "MatMul" and const_array(node.inputs[1]) is None:
        rule = _TWO_MATRICES
    why = rule.objection(node) or _other_type(node, rule)
    return why or rule


def absorbed_interval(node: Node) -> tuple[float, float] | None:
    """The interval of a Relu or Clip, where the ends of a grid can replace it; else None.

    A grid saturates at its ends, and always holds zero.
    """
    if not node.is_onnx or node.op not in ("Relu", "Clip"):
        return None
    if node.op == "Relu":
        return 0.0, np.inf
    low, high = -np.inf, np.inf
    if is_present(node, 1):
        low = _scalar(node.inputs[1])
    if is_present(node, 2):
        high = _scalar(node.inputs[2])
    low, high = float(node.attrs.get("min", low)), float(node.attrs.get("max", high))
    return (low, high) if low <= 0.0 <= high else None


def _scalar(tensor: gs.Tensor) -> float:
    """The value of a constant of one element; NaN, for which no comparison holds, otherwise."""
    value = const_array(tensor)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else np.nan


def _other_type(node: Node, rule: IntegerRule) -> str | None:
    indices = range(len(node.inputs)) if rule.data is None else rule.data
    for index in indices:
        dtype = node.inputs[index].dtype
        if dtype != np.float32:
            found = "of an unknown type" if dtype is None else np.dtype(dtype).name
            return f"its input `{node.inputs[index].name}` is {found}, not float32"
    return None


def _layer(node: Node) -> str | None:
    """Why a Conv, a Gemm, or a MatMul with a constant is no layer on integers."""
    operator = linear_operator(node)
    weight = const_array(node.inputs[operator.weight])
    if operator.scale != 1.0 or operator.bias_scale != 1.0:
        return "onnxruntime's integer Gemm takes no alpha or beta"
    if operator.in_axis == -2:
        return "onnxruntime's integer Gemm takes no transposed input"
    if node.op == "MatMul" and weight is not None and weight.ndim != 2:
        return "its weight is a stack of matrices"
    if weight is None:
        return "its weight is computed at run time"
    if const_array(node.inputs[operator.data]) is not None:
        return "it only has constants"
    if operator.bias is not None and is_present(node, operator.bias):
        bias = const_array(node.inputs[operator.bias])
        if bias is None:
            return "its bias is computed at run time"
        if node.op == "Gemm" and bias.size != operator.matrix_shape(weight.shape)[0]:
            return "its bias is not one number for each output"
    return None if np.isfinite(weight).all() else "its weight is not finite"


def _rows(node: Node) -> str | None:
    """Why the rows that a Gather picks cannot be those of a table of integers."""
    table = const_array(node.inputs[0])
    if table is None or table.ndim != 2 or table.dtype != np.float32:
        return "what it reads is no constant matrix of float32"
    if not all(picks_rows(reader, node.inputs[0]) for reader in node.inputs[0].outputs):
        return "others read the table, or what it picks are no rows"
    return None if np.isfinite(table).all() else "its table is not finite"


def _some_variable(node: Node) -> str | None:
    if all(const_array(tensor) is not None for tensor in node.inputs):
        return "it only has constants"
    return None


def _moving(node: Node) -> str | None:
    return "what it moves is constant" if const_array(node.inputs[0]) is not None else None


def _nearest(node: Node) -> str | None:
    if node.attrs.get("mode", "nearest") != "nearest":
        return "onnxruntime resizes integers only by choosing the nearest"
    return _moving(node)


def _one_output(node: Node) -> str | None:
    if len([tensor for tensor in node.outputs if tensor.name]) > 1:
        return "its indices are used"
    return _moving(node)


def _map_of_channels(node: Node) -> str | None:
    if const_array(node.inputs[0]) is not None:
        return "it only has constants"
    found = channel_map(node)
    return found if isinstance(found, str) else None


def _known_rank(node: Node) -> str | None:
    return "the rank of its input is not known" if rank(node.inputs[0]) is None else None


def _probabilities(form: GridForm) -> tuple[float, float]:
    """The range for which the kernel of Softmax is correct.

    The kernel multiplies by the floor of 1 / scale, and does not saturate. So the probability 1
    must be the last code of int8, or the step after the last code of uint8, which the kernel cuts
    off.
    """
    if form.dtype == np.uint8:
        return 0.0, 255 / 256
    scale = np.nextafter(np.float32(1 / 255), np.float32(0))
    return 0.0, 255 * float(scale)


_MOVES: Final = IntegerRule(KernelKind.MOVEMENT, objection=_moving)
_TWO_MATRICES: Final = IntegerRule(KernelKind.PLAIN, "QLinearMatMul", (0, 1))
_RULES: Final[Mapping[str, IntegerRule]] = {
    "Conv": IntegerRule(KernelKind.LAYER, "QLinearConv", objection=_layer),
    "Gemm": IntegerRule(KernelKind.LAYER, "QGemm", objection=_layer),
    "MatMul": IntegerRule(KernelKind.LAYER, "QLinearMatMul", objection=_layer),
    "BatchNormalization": IntegerRule(
        KernelKind.CHANNEL_MAP, "QLinearConv", objection=_map_of_channels
    ),
    "HardSigmoid": IntegerRule(KernelKind.CHANNEL_MAP, "QLinearConv", objection=_map_of_channels),
    "Add": IntegerRule(KernelKind.PLAIN, "QLinearAdd", None, _some_variable),
    "Mul": IntegerRule(KernelKind.PLAIN, "QLinearMul", None, _some_variable),
    "Concat": IntegerRule(KernelKind.PLAIN, "QLinearConcat", None, _some_variable),
    "AveragePool": IntegerRule(KernelKind.PLAIN, "QLinearAveragePool", objection=_known_rank),
    "GlobalAveragePool": IntegerRule(KernelKind.PLAIN, "QLinearGlobalAveragePool"),
    "Sigmoid": IntegerRule(KernelKind.PLAIN, "QLinearSigmoid"),
    "LeakyRelu": IntegerRule(KernelKind.PLAIN, "QLinearLeakyRelu"),
    "Softmax": IntegerRule(
        KernelKind.PLAIN,
        "QLinearSoftmax",
        objection=_known_rank,
        fixed=_probabilities,
        no_answer="what it returns is an answer: 8 bits say too little of small probabilities",
    ),
    "MaxPool": IntegerRule(KernelKind.MOVEMENT, objection=_one_output),
    "Resize": IntegerRule(KernelKind.MOVEMENT, objection=_nearest),
    "LSTM": IntegerRule(KernelKind.RECURRENT, KERNEL, (), objection_to_lstm),
    **dict.fromkeys(
        (
            "DepthToSpace",
            "Expand",
            "Flatten",
            "Gather",
            "Reshape",
            "Slice",
            "Split",
            "Squeeze",
            "Tile",
            "Transpose",
            "Unsqueeze",
        ),
        _MOVES,
    ),
}
_PRODUCT: Final = IntegerRule(KernelKind.DYNAMIC, "MatMulInteger", (), objection_to_dynamic)
_TABLE: Final = IntegerRule(KernelKind.TABLE, "Gather of integers", (), _rows)
_FLOAT: Final[Mapping[str, str]] = {
    "LayerNormalization": "it is left in float",
    "RMSNormalization": "it is left in float",
    "ConvTranspose": "onnxruntime has no integer kernel for ConvTranspose on CPUs",
    "QuantizeLinear": "it is quantized already",
    "DequantizeLinear": "it is quantized already",
    "GRU": "onnxruntime has no integer kernel for GRU: of recurrent layers it has one for LSTM",
}
