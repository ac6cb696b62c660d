"""Inputs of layers as signs times one scale each.

    x  ->  scale · Sign(x / scale)

The scale is the mean of |x| over all calibration samples and all elements that are not zero: of all
single numbers it leaves the least squares between the two. The division changes no sign. It gives
Sign its input in units of the scale, in which its gradient is defined (see
`runtime.training.operators.straight_through`), whatever operator the two factors are merged into
later.

ONNX defines Sign(0) = 0: behind a Relu an input becomes zeros and ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.analysis.linear_operators import LINEAR_OPS, RECURRENT_OPS
from onnxslim.graph.ir import node_label
from onnxslim.graph.operands import const_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.problems import layer_depths
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity, PassResult, Skip
from onnxslim.services.observations import Observation

_MOVING: Final = frozenset(
    {
        *("Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
_SCALING: Final = frozenset({"Mul", "Div"})
_FIRST: Final = "its input stays: no layer lies between it and the inputs of the graph"
_SIGNS: Final = "its input stays: it is a sign already"
_STATES: Final = "its input stays: the operator makes its own hidden states"


def signed_inputs(graph: gs.Graph, layers: Sequence[WeightLayer], context: Context) -> PassResult:
    """Let layers read signs times a scale; edits `graph`.

    The inputs of the first layers stay, and so do those that are signs already. Layers that read
    one tensor read the same signs; other nodes go on reading the tensor itself.

    Args:
        graph: that of `context.model`, where there is one.
        layers: of the graph; tables have no input and are passed over.
        context: with the samples that scales are measured on; without samples they are 1.
    """
    rw = Rewriter(graph)
    found = list(_chosen(rw, layers))
    scales = _scales([layer.data_tensor for layer in found], context)
    made: dict[tuple[int, int], gs.Tensor] = {}
    for layer in found:
        tensor, label = layer.data_tensor, node_label(layer.node)
        scale = scales.get(tensor.name, 1.0)
        if isinstance(scale, str):
            rw.skip(label, f"its input stays: {scale}")
            continue
        key = (id(tensor), id(layer.graph))
        if key not in made:
            made[key] = _signs(rw, layer, scale)
        rw.set_input(layer.node, layer.data, made[key])
        rw.note(label, f"its input as signs times {scale:.3g}", Fidelity.LOSSY)
    return rw.result()


def _chosen(rw: Rewriter, layers: Sequence[WeightLayer]) -> Iterator[WeightLayer]:
    """The layers whose inputs become signs; says why those of others do not."""
    products = {
        node
        for graph in rw.graphs()
        for node in graph.nodes
        if node.is_onnx and node.op in (*LINEAR_OPS, *RECURRENT_OPS)
    }
    tables = {layer.node for layer in weight_layers(rw.main)[0]} - products
    depths = layer_depths(rw.main, products | tables)
    for layer in layers:
        if layer.node in tables:
            continue
        why = None
        if layer.node.op in RECURRENT_OPS:
            why = _STATES
        elif not depths[layer.node]:
            why = _FIRST
        elif _is_sign(rw, layer.data_tensor):
            why = _SIGNS
        if why is None:
            yield layer
        else:
            rw.skip(node_label(layer.node), why)


def _is_sign(rw: Rewriter, tensor: gs.Tensor) -> bool:
    """Whether a tensor is made of signs, moved or times a number."""
    node = rw.producer(tensor)
    while node is not None and node.op != "Sign":
        if node.op in _MOVING or (node.op in _SCALING and _is_number(node.inputs[1])):
            tensor = node.inputs[0]
        elif node.op == "Mul" and _is_number(node.inputs[0]):
            tensor = node.inputs[1]
        else:
            return False
        node = rw.producer(tensor)
    return node is not None and node.is_onnx


def _is_number(tensor: gs.Tensor) -> bool:
    stored = const_value(tensor)
    return stored is not None and stored.size == 1


def _scales(tensors: Sequence[gs.Tensor], context: Context) -> Mapping[str, float | str]:
    """The scale of each tensor by its name, or why none could be measured; {} without samples."""
    if context.calibration is None or context.model is None:
        return {}
    names = list(dict.fromkeys(str(tensor.name) for tensor in tensors))
    seen = context.calibration.observe(context.model, names) if names else ()
    return dict(
        (item.node, item.why) if isinstance(item, Skip) else (item.tensor, _scale(item))
        for item in seen
    )


def _scale(seen: Observation) -> float | str:
    """The mean magnitude of elements that are not zero."""
    histogram = seen.histogram
    if not histogram.total:
        return "it is zero in all samples"
    middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    return float(np.abs(middles) @ histogram.counts) / histogram.total


def _signs(rw: Rewriter, layer: WeightLayer, scale: float) -> gs.Tensor:
    """The signs of the input of `layer`, times `scale`."""
    tensor = layer.data_tensor
    number = rw.constant(np.array(scale, layer.dtype), f"{tensor.name}_scale")
    made = tensor
    for op, word in (("Div", "scaled"), ("Sign", "sign"), ("Mul", "signed")):
        inputs = [made] if op == "Sign" else [made, number]
        (made,) = rw.insert(
            *(layer.node, op, inputs),
            name=f"{tensor.name}_{word}",
            dtype=layer.dtype,
            shape=tensor.shape,
        )
    return made
