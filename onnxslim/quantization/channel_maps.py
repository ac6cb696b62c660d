"""Operators that multiply and shift each channel by itself, as depthwise Convs of one position.

BatchNormalization has no integer kernel, nor has HardSigmoid; a Conv with one weight for each
channel says the same, and its weights are exact on integers: every row has a scale of its own.
HardSigmoid's ends are those of its output's grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChannelMap:
    """y = factor·x + offset, channel by channel.

    Attributes:
        factor, offset: (channels,).
        axes: of space, behind batch and channels.
    """

    factor: Array
    offset: Array
    axes: int

    @property
    def weight(self) -> npt.NDArray[np.float32]:
        """The kernel of the Conv, (channels, 1, 1, ...)."""
        shape = (len(self.factor), 1, *(1,) * self.axes)
        return self.factor.reshape(shape).astype(np.float32)

    @property
    def bias(self) -> npt.NDArray[np.float32]:
        """That of the Conv, (channels,)."""
        return self.offset.astype(np.float32)

    @property
    def attributes(self) -> dict[str, object]:
        """Those of the Conv."""
        return {"group": len(self.factor), "kernel_shape": [1] * self.axes}


def channel_map(node: Node) -> ChannelMap | str:
    """What a BatchNormalization or HardSigmoid does to channels, or why that is not known."""
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


__all__ = ["ChannelMap", "channel_map"]
