"""The weights that write or read each channel of one side of a layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxslim.channels.tracing import Member
from onnxslim.graph.operands import const_array

Array = npt.NDArray[np.float64]


def member_rows(member: Member) -> Array:
    """The weights that make each output channel, (channels, weights)."""
    if member.layer is None:  # an embedding: (rows, channels)
        table = const_array(member.node.inputs[member.operand])
        assert table is not None
        return np.asarray(table.T, np.float64)
    weight = np.asarray(member.layer.canonical(), np.float64)
    return weight.reshape(-1, weight.shape[2])


def member_columns(member: Member) -> Array:
    """The weights that read each input channel, (channels, weights)."""
    assert member.layer is not None
    weight = np.asarray(member.layer.canonical(), np.float64)
    groups, rows, columns = weight.shape
    taps = groups * columns // len(member.ids)
    # (g, rows, channels of a group, taps) -> (g, channels, rows, taps)
    split = weight.reshape(groups, rows, columns // taps, taps).transpose(0, 2, 1, 3)
    return split.reshape(len(member.ids), -1)
