"""Operators without an integer kernel, expressed by operators that have one.

BatchNormalization and HardSigmoid multiply and shift each channel by itself. A depthwise Conv of
one position does the same, and its weights are exact as integers, because every row has a scale of
its own. (The two ends of HardSigmoid are the ends of its output's grid.) Sum becomes Add.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import Fidelity

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChannelMap:
    """y = factor·x + offset, channel by channel.

    Attributes:
        factor, offset: of each channel, (channels,).
        axes: the number of spatial axes, behind batch and channels.
    """

    factor: Array
    offset: Array
    axes: int

    @property
    def weight(self) -> npt.NDArray[np.float32]:
        """The weight of the depthwise Conv, (channels, 1, 1, ...)."""
        shape = (len(self.factor), 1, *(1,) * self.axes)
        return self.factor.reshape(shape).astype(np.float32)

    @property
    def bias(self) -> npt.NDArray[np.float32]:
        """The bias of the depthwise Conv, (channels,)."""
        return self.offset.astype(np.float32)

    @property
    def attributes(self) -> dict[str, object]:
        """The attributes of the depthwise Conv."""
        return {"group": len(self.factor), "kernel_shape": [1] * self.axes}


def channel_map(node: Node) -> ChannelMap | str:
    """The channel map of a BatchNormalization or HardSigmoid, or why it is not known."""
    ndim, channels = rank(node.inputs[0]), known_dim(node.inputs[0], 1)
    if ndim is None or ndim < 3 or channels is None:
        return "its input is no map with a known number of channels"
    if node.op == "HardSigmoid":
        factor = np.full(channels, float(node.attrs.get("alpha", 0.2)))
        offset = np.full(channels, float(node.attrs.get("beta", 0.5)))
        return ChannelMap(factor, offset, ndim - 2)
    found = [const_array(tensor) for tensor in node.inputs[1:5]]
    if any(item is None for item in found) or node.attrs.get("training_mode", 0):
        return "its statistics are computed at run time"
    scale, bias, mean, variance = (np.asarray(item, np.float64) for item in found)
    factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    offset = bias - mean * factor
    if len([tensor for tensor in node.outputs if tensor.name]) > 1 or not (
        np.isfinite(factor).all() and np.isfinite(offset).all()
    ):
        return "its statistics are returned, or not finite"
    return ChannelMap(factor, offset, ndim - 2)


def sums_to_adds(rewriter: Rewriter) -> None:
    """Replace ``Sum(a, b)`` with ``Add(a, b)``: onnxruntime has no integer Sum."""
    for node in list(rewriter.main.nodes):
        if node.op != "Sum" or not node.is_onnx or len(node.inputs) < 2:
            continue
        first, *rest = node.inputs
        for other in rest[:-1]:  # from left to right, as onnxruntime adds up
            (first,) = rewriter.insert(
                node, "Add", [first, other], name=f"{node.outputs[0].name}_part", dtype=first.dtype
            )
        exact = Fidelity.EXACT if len(rest) == 1 else Fidelity.CLOSE
        what = "Sum became Add, which has an integer kernel"
        rewriter.update(node, what, op="Add", inputs=[first, rest[-1]], attrs={}, fidelity=exact)
