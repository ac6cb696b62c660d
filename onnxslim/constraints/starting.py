"""Values that training may start from, in place of those that the file has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.analysis.linear_operators import TableRows
from onnxslim.constraints.dense import DenseTwin, dense_values
from onnxslim.constraints.places import constant_of
from onnxslim.constraints.read import Constraints
from onnxslim.constraints.stored import (
    CodedWeight,
    LeafWeight,
    LookupWeight,
    ScaleWeight,
    StoredWeight,
)
from onnxslim.graph.ir import Node

_GAIN: Final = 2.0  # of the variance, behind a Relu (He et al. 2015, arXiv:1502.01852, eq. 10)


def weights_of_other(constraints: Constraints, other: Constraints) -> dict[str, np.ndarray]:
    """Dense weights of another graph for the weights of a graph, by the names of their records.

    A weight gets one of its name, or else one that the same node reads, if it has its shape as it
    is or transposed; of several the nearest.
    """
    theirs = [(item, _dense(item)) for item in _elements(other)]
    named = {name: array for item, array in theirs for name in _names(item)}
    found: dict[str, np.ndarray] = {}
    for item in _elements(constraints):
        own = _dense(item)
        same = [named[name] for name in _names(item) if name in named]
        read = [array for x, array in theirs if not set(item.readers).isdisjoint(x.readers)]
        candidates = _of_shape(same, own.shape) or _of_shape(read, own.shape)
        if candidates:
            found[item.name] = min(candidates, key=lambda array: _distance(array, own))
    return found


def _of_shape(arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> list[np.ndarray]:
    turned = [array.T for array in arrays if array.ndim == 2]
    return [array for array in (*arrays, *turned) if array.shape == shape]


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first.astype(np.float32) - second.astype(np.float32)))


def _elements(constraints: Constraints) -> Iterator[StoredWeight]:
    """The records but for those that others are computed from: tables, and steps of grids."""
    tables = {n for x in constraints.coded() if isinstance(x, LookupWeight) for n in x.tables}
    for item in constraints.weights:
        if item.name not in tables and not isinstance(item, ScaleWeight):
            yield item


def _names(item: StoredWeight) -> tuple[str, ...]:
    """Names of the tensors that hold a weight as operators read it."""
    return item.outputs if isinstance(item, CodedWeight) else (item.name,)


def _dense(item: StoredWeight) -> np.ndarray:
    if isinstance(item, CodedWeight):
        return dense_values(item)
    assert isinstance(item, LeafWeight)
    return item.holder.values


def random_weights(twin: DenseTwin, seed: int) -> dict[str, np.ndarray]:
    """Weights as a net has them before training, by the names of the constants of `twin`.

    Layers are drawn by the number of inputs of an output whose weights are not zero; tables keep
    their spread; biases of layers are zero. Everything else is left out.
    """
    rng = np.random.default_rng(seed)
    layers, _ = weight_layers(twin.model.graph)
    found: dict[str, np.ndarray] = {}
    for layer in layers:
        weight = constant_of(layer.weight_tensor)
        if weight is not None and weight[0] not in found:
            found[weight[0]] = layer.restored(_drawn(layer, rng))
    for layer in layers:
        found |= {name: np.zeros_like(array) for name, array in _biases(layer).items()}
    return found


def _drawn(layer: WeightLayer, rng: np.random.Generator) -> np.ndarray:
    """Values of the canonical form."""
    given = layer.canonical().astype(np.float64)
    noise = rng.standard_normal(given.shape)
    if isinstance(layer.unfolding, TableRows):
        return np.asarray(noise * given.std())
    kept = given != 0
    inputs = np.maximum(kept.sum(-1, keepdims=True), 1)
    return np.asarray(noise * np.sqrt(_GAIN / inputs) * kept)


def _biases(layer: WeightLayer) -> Mapping[str, np.ndarray]:
    """Constants that are added to what a layer computes, by name."""
    places: list[tuple[Node, int]] = []
    if layer.bias is not None and layer.bias < len(layer.node.inputs):
        places.append((layer.node, layer.bias))
    for node in _readers(layer.node.outputs[0]):
        places += [(node, index) for index in (0, 1) if node.op == "Add"]
    found = [constant_of(node.inputs[index]) for node, index in places]
    return {item[0]: item[1].values for item in found if item is not None}


def _readers(tensor: gs.Tensor) -> list[Node]:
    return list(dict.fromkeys(tensor.outputs))
