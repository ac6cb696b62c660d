"""Fit the scales and shifts of normalizations to what they returned in the original model.

Where a lossy step moves what a normalization gets, γ and β can make up for a part of it at no cost,
channel by channel: two numbers that all samples decide, where a refit of a whole weight fits as
many numbers as the normalization has channels.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import cast
from onnxslim.analysis.normalizations import Normalization, normalizations
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.services.calibration import Calibration
from onnxslim.services.channel_moments import ChannelMoments


def refit_normalizations(
    rw: Rewriter, model: Model, reference: Model, calibration: Calibration
) -> list[str]:
    """Refit those with a scale of their own whose values have changed, one after the other.

    Args:
        rw: of the graph of `model`.
        model: as it is now.
        reference: the model whose values they are to return again.
        calibration: the samples to fit to.

    Returns:
        The labels of those that were refitted.
    """
    return [
        norm.label
        for norm in normalizations(rw)
        if norm.scale is not None and _refit(rw, norm, norm.scale, model, reference, calibration)
    ]


def _refit(
    rw: Rewriter,
    norm: Normalization,
    scale: tuple[Node, int],
    model: Model,
    reference: Model,
    calibration: Calibration,
) -> bool:
    found = calibration.channel_moments(model, reference, norm.result.name)
    if not isinstance(found, ChannelMoments):
        return False
    if norm.bias is None:
        return _set(rw, {scale: _array(scale) * found.ratio()})
    slope, intercept = found.line()
    # a·(γ·n + β) + b = (a·γ)·n + (a·β + b)
    return _set(
        rw,
        {scale: _array(scale) * slope, norm.bias: _array(norm.bias) * slope + intercept},
    )


def _array(place: tuple[Node, int]) -> np.ndarray:
    values = const_array(place[0].inputs[place[1]])
    assert values is not None, "a normalization's operands are constant"
    return np.asarray(values, np.float64)


def _set(rw: Rewriter, wishes: dict[tuple[Node, int], np.ndarray]) -> bool:
    """Give each place a constant of its own; False where a value is out of its type's range."""
    old: dict[tuple[Node, int], gs.Tensor] = {at: at[0].inputs[at[1]] for at in wishes}
    stored = {at: cast(values, np.dtype(old[at].dtype)) for at, values in wishes.items()}
    if any(values is None for values in stored.values()):
        return False
    for (node, index), values in stored.items():
        assert values is not None
        rw.set_input(node, index, rw.constant(values, old[node, index].name))
    return True
