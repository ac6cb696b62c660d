"""Grids without zero points, and biases without codes.

A grid of codes [low, high] with zero point z covers scale·(low − z) to scale·(high − z). The grid
of signed codes with zero point 0 that covers it has the scale max(|ends|) / 127: where the range
begins at zero, that is one bit less. The ends of a pair, and whatever moves its codes, see the same
change, as it follows from scale, zero point and type alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, const_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lowering.code_forms import CodeWriter, read_codes
from onnxslim.lowering.obstacles import code_type, zero_point_of
from onnxslim.pipeline.targets import TargetEngine, Trait
from onnxslim.records import Fidelity

_TOP: Final = 127
_ENDS_SINCE: Final = 11  # the first opset in which Clip has its ends as inputs
_BYTES: Final = (np.dtype(np.int8), np.dtype(np.uint8))


def grid_ends(
    node: Node, scale: np.ndarray, zero: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value that codes stand for, of the shape of scales."""
    low, high = (-128, 127) if code_type(node) == np.int8 else (0, 255)
    zeros = np.zeros(scale.shape) if zero is None else zero.astype(np.float64)
    return scale.astype(np.float64) * (low - zeros), scale.astype(np.float64) * (high - zeros)


def clipped(rw: Rewriter, node: Node, least: float, most: float) -> gs.Tensor:
    """What `node` reads, no lower and no higher than the ends of a grid.

    A grid that begins at zero is a Relu as well, and onnxruntime's files leave the Relu out.
    """
    source = node.inputs[0]
    name, dtype = f"{node.outputs[0].name}_clipped", source.dtype or np.dtype(np.float32)
    attrs: dict[str, float] = {}
    ends = [rw.constant(np.asarray(end, dtype), f"{name}_end") for end in (least, most)]
    if rw.opset < _ENDS_SINCE:
        attrs, ends = {"min": least, "max": most}, []
    (made,) = rw.insert(
        node, "Clip", [source, *ends], attrs, name=name, dtype=dtype, shape=source.shape
    )
    return made


def _within(rw: Rewriter, node: Node, least: float, most: float, step: float) -> gs.Tensor:
    """What a QuantizeLinear reads, where its new grid goes on further than the old one."""
    if least == 0:
        source = node.inputs[0]
        if source.inputs and source.inputs[0].op == "Relu":
            return source
        (made,) = rw.insert(
            node,
            "Relu",
            [source],
            name=f"{node.outputs[0].name}_positive",
            dtype=source.dtype,
            shape=source.shape,
        )
        return made
    is_wider = abs(abs(least) - abs(most)) > 2 * step
    return clipped(rw, node, least, most) if is_wider else node.inputs[0]


def float_biases(rw: Rewriter) -> None:
    """Store biases that are computed from 32-bit codes as floats."""
    for node in rw.walk("DequantizeLinear"):
        codes, scale = const_array(node.inputs[0]), const_array(node.inputs[1])
        if codes is None or scale is None or codes.dtype != np.int32:
            continue
        values = (codes.astype(scale.dtype) * scale).astype(scale.dtype)
        made = rw.constant(values, f"{node.outputs[0].name}_float")
        rw.substitute(node, made, "the bias is stored in floats")


def centre(rw: Rewriter, target: TargetEngine) -> None:
    """Give all grids codes of int8, and zero points 0 where the target takes no others."""
    nodes = list(rw.walk("QuantizeLinear", "DequantizeLinear"))
    for node in nodes:
        codes = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
        is_seen = any(codes is tensor for tensor in (*rw.main.inputs, *rw.main.outputs))
        if is_seen and code_type(node) in _BYTES:
            rw.skip(node, "its codes are an input or output of the model, and keep their type")
            return
    for node in nodes:
        if const_value(node.inputs[0]) is not None:
            _centre_weight(rw, target, node)
        elif code_type(node) in _BYTES:
            _centre_activation(rw, target, node)


def _centre_weight(rw: Rewriter, target: TargetEngine, node: Node) -> None:
    zero, coded = zero_point_of(node), read_codes(node)
    if coded is None or node.op != "DequantizeLinear":
        return
    dtype = code_type(node)
    is_signed = dtype is not None and not dtype.name.startswith("uint")
    if is_signed and (zero is None or not zero.astype(np.int32).any()):
        return
    is_exact = target.takes(Trait.ZERO_POINTS) or not coded.zero.any()
    made = CodeWriter(rw, target).written(node, coded, str(node.outputs[0].name))
    fidelity = Fidelity.EXACT if is_exact else Fidelity.LOSSY
    rw.substitute(node, made, "the weight has signed codes whose zero point is 0", fidelity)


def _centre_activation(rw: Rewriter, target: TargetEngine, node: Node) -> None:
    scale, zero, dtype = const_array(node.inputs[1]), zero_point_of(node), code_type(node)
    if scale is None or dtype is None or "output_dtype" in node.attrs:
        return
    is_unsigned = dtype == np.uint8
    zeros = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64)
    shifted = zeros - (128 if is_unsigned else 0)
    source = node.inputs[0]
    if shifted.any() and not target.takes(Trait.ZERO_POINTS):
        least, most = grid_ends(node, scale, zero)
        scales = (np.maximum(np.abs(least), np.abs(most)) / _TOP).astype(scale.dtype)
        shifted, fidelity = np.zeros_like(shifted), Fidelity.LOSSY
        if node.op == "QuantizeLinear" and scale.size == 1:
            source = _within(rw, node, float(least.min()), float(most.max()), float(scales.max()))
    elif is_unsigned:
        scales, fidelity = scale, Fidelity.EXACT
    else:
        return
    inputs: list[gs.Tensor] = [
        source,
        rw.constant(scales, str(node.inputs[1].name)),
        rw.constant(shifted.astype(np.int8), f"{node.inputs[1].name}_zero_point"),
    ]
    if node.op == "QuantizeLinear":
        node.outputs[0].dtype = np.dtype(np.int8)
    words = "the grid is of int8" + (", zero point 0" if not shifted.any() else "")
    rw.update(node, words, inputs=inputs, fidelity=fidelity)
