"""Groups of elements of a layer's weight that a regularizer brings to zero together.

Wen et al. 2016, arXiv:1608.03665, eq. 3 to 5 and section 3.4.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.constraints.places import constant_of
from onnxslim.services.training import WeightGroup


def weight_groups(graph: gs.Graph, kind: WeightGroup | None) -> dict[str, np.ndarray]:
    """The group of each element of the constant weights of layers, by the name of the constant.

    Args:
        graph: with dense weights.
        kind: what a group is; None: each element is one.

    Returns:
        int64 arrays of the shapes of the weights. A weight of several layers has the groups of the
        first one.
    """
    found: dict[str, np.ndarray] = {}
    for layer in weight_layers(graph)[0]:
        weight = constant_of(layer.weight_tensor)
        if weight is not None and weight[0] not in found:
            found[weight[0]] = layer.laid_out(_numbers(layer, kind))
    return found


def _numbers(layer: WeightLayer, kind: WeightGroup | None) -> np.ndarray:
    """The group of each element of the canonical weight, (groups, rows, columns)."""
    size = (layer.groups, layer.rows, layer.columns)
    matrix, row, column = np.indices(size, sparse=True)
    taps = prod(layer.unfolding.kernel) if isinstance(layer.unfolding, ConvPatches) else 1
    if kind is WeightGroup.FILTER:
        made = matrix * layer.rows + row
    elif kind is WeightGroup.CHANNEL:
        made = matrix * (layer.columns // taps) + column // taps
    elif kind is WeightGroup.SHAPE:
        made = matrix * layer.columns + column
    elif kind is WeightGroup.DEPTH:
        made = np.zeros((1, 1, 1), np.int64)
    else:
        made = (matrix * layer.rows + row) * layer.columns + column
    return np.ascontiguousarray(np.broadcast_to(made, size))
