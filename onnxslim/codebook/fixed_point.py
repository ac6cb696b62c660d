"""A weight of 16-bit integers and one scale: onnxslim.FixedPoint(codes, scale) -> weight.

This form is for fixed-point numbers of too many bits for a table of values. The function casts and
multiplies; onnxruntime inlines it and folds it when a session starts. With a power of two as scale,
every product is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxslim.codebook import replacement
from onnxslim.codebook.replacement import (
    check_replaceable,
    function_of,
    is_written,
    why_not_replaceable,
)
from onnxslim.graph.functions import DOMAIN, FIXED_POINT
from onnxslim.graph.ir import Constant, Graph, to_onnx_dtype
from onnxslim.graph.operands import const_array, const_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import Fidelity

CODE_TYPE: Final = np.dtype(np.int16)
LEAST_OPSET: Final = 7  # the first whose Mul broadcasts
_TYPES: Final[dict[np.dtype[np.floating], str]] = {
    np.dtype(np.float32): "",
    np.dtype(np.float16): "ToFloat16",
    np.dtype(np.float64): "ToDouble",
}


@dataclass(frozen=True, eq=False)
class FixedPointWeight:
    """A weight whose values are integers times a scale.

    Attributes:
        codes: int16, of the shape of the tensor.
        scale: a scalar of the type of the tensor.
    """

    codes: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        """Check types and shapes."""
        if self.codes.dtype != CODE_TYPE or not self.codes.size:
            raise ValueError(f"Codes are int16, not {self.codes.dtype} {self.codes.shape}.")
        if self.scale.dtype not in _TYPES or self.scale.ndim:
            raise ValueError(f"A scale is one float, not {self.scale.dtype} {self.scale.shape}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Type of the tensor."""
        return self.scale.dtype

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scale in a file."""
        return self.codes.nbytes + self.scale.nbytes

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return float(np.count_nonzero(self.codes)) / self.size

    def dense(self) -> np.ndarray:
        """The tensor, bit for bit as onnxruntime computes it."""
        return np.asarray(self.codes.astype(self.dtype) * self.scale)


@dataclass(frozen=True)
class FixedPointFunction:
    """The function that computes weights of type `dtype`; a `replacement.WeightFunction`."""

    inputs: ClassVar[tuple[str, ...]] = ("codes", "scale")
    least_opset: ClassVar[int] = LEAST_OPSET
    dtype: np.dtype[np.floating]

    @property
    def name(self) -> str:
        """Name of the function."""
        return f"{FIXED_POINT}{_TYPES[self.dtype]}"

    def function(self, opset: int) -> onnx.FunctionProto:
        """The function, at an opset of the standard domain."""
        nodes = [
            helper.make_node("Cast", ["codes"], ["t0"], to=to_onnx_dtype(self.dtype)),
            helper.make_node("Mul", ["t0", "scale"], ["weight"]),
        ]
        opsets = [helper.make_opsetid("", opset)]
        inputs = list(self.inputs)
        return helper.make_function(DOMAIN, self.name, inputs, ["weight"], nodes, opsets)


def why_not(graph: Graph, weight: FixedPointWeight, holder: Constant | None = None) -> str | None:
    """Why `weight` cannot be stored in `graph`, in place of `holder` where that is given; or None.

    Says nothing of whether it saves bytes.
    """
    return why_not_replaceable(graph, FixedPointFunction(weight.dtype), holder)


def replace_constant(
    rw: Rewriter, holder: Constant, weight: FixedPointWeight, what: str, fidelity: Fidelity
) -> tuple[str, ...]:
    """Put `weight` in place of `holder`, wherever that is used; see `lookup.replace_constant`.

    Raises:
        ValueError: it cannot be stored, see `why_not`, or is of another shape or type.
    """
    check_replaceable(holder, weight.dtype, weight.shape, why_not(rw.main, weight, holder))
    made = FixedPointFunction(weight.dtype)
    return replacement.replace_constant(
        rw, holder, made, (weight.codes, weight.scale), what, fidelity
    )


def read(graph: Graph, node: gs.Node) -> FixedPointWeight | None:
    """The weight that `node` of `graph`, or of one of its bodies, gives.

    Returns:
        None for another node, and where its function or its inputs are not those of
        `replace_constant`.
    """
    function = function_of(graph, node.op) if node.domain == DOMAIN else None
    if function is None or len(node.inputs) != len(FixedPointFunction.inputs):
        return None
    codes, scale = (const_array(tensor) for tensor in node.inputs)
    if codes is None or scale is None:
        return None
    try:
        weight = FixedPointWeight(codes, scale)
    except ValueError:
        return None
    made = FixedPointFunction(weight.dtype)
    return weight if made.name == node.op and is_written(made, function) else None


def is_fixed_point(node: gs.Node) -> bool:
    """Whether `node` calls a function of a name that a `FixedPointFunction` has."""
    return bool(node.domain == DOMAIN) and str(node.op).startswith(FIXED_POINT)


def element_count(node: gs.Node) -> int:
    """Number of elements of the weight that a FixedPoint node computes; 0 if it is unknown."""
    codes = const_value(node.inputs[0])
    return 0 if codes is None else prod(codes.shape)
