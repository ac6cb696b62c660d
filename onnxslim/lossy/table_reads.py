"""How often each row of a table is read on the calibration samples.

A row of a table of embeddings is an output, so an error in it counts as often as the row is read:
E‖y − ŷ‖² = Σ pᵣ·‖wᵣ − ŵᵣ‖². Words of texts are as rare as 1 / rank (Zipf), and most rows of a
vocabulary are never read on some hundreds of samples. Each row counts as if it were read once more
(Laplace), so that rows that the samples lack are not given up.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.analysis.token_inputs import padding_mask
from onnxslim.errors import RuntimeFailure
from onnxslim.graph.ir import Node, Variable, ancestors
from onnxslim.io.model import Model
from onnxslim.pipeline.passes import Context
from onnxslim.services.calibration import Calibration


def row_shares(name: str, context: Context) -> np.ndarray | None:
    """The share pᵣ of reads that each row of the table of layer `name` gets, (rows,).

    None without samples, and where the indices are computed in a body or cannot be computed alone.
    """
    calibration, model = context.calibration, context.model
    if calibration is None or model is None:
        return None
    model = model.clone()
    layer = next((la for la in weight_layers(model.graph)[0] if la.name == name), None)
    if layer is None or layer.bodies:
        return None
    reads = np.ones(layer.rows)
    try:
        for indices in _indices(model, layer, calibration):
            reads += np.bincount(indices % layer.rows, minlength=layer.rows)
    except RuntimeFailure:
        return None
    shares: np.ndarray = reads / reads.sum()
    return shares


def _indices(model: Model, layer: WeightLayer, calibration: Calibration) -> Iterator[np.ndarray]:
    """What the samples look up, without the positions that only fill up a batch.

    Args:
        model: edited: only what computes the indices is left.
        layer: a table of `model`.
        calibration: the samples.
    """
    graph = model.graph
    mask = padding_mask(graph)
    read = [layer.node.inputs[layer.operator.data]]
    read += [tensor for tensor in graph.inputs if mask is not None and tensor.name == mask.name]
    nodes = ancestors(read)
    graph.nodes = [node for node in graph.nodes if node in nodes]
    graph.unused = []
    graph.outputs = [_copied(tensor, graph) for tensor in read]
    for sample in calibration.outputs(model):
        indices, *masks = (sample.values[tensor.name] for tensor in graph.outputs)
        for given in masks:
            length = indices.shape[-1] if indices.ndim else 0
            counts = given[:, -length:] != (mask.left_out if mask is not None else None)
            if counts.shape == indices.shape:  # that of the tokens, not of positions in general
                indices = indices[counts]
        yield indices.reshape(-1).astype(np.int64)


def _copied(tensor: gs.Tensor, graph: gs.Graph) -> Variable:
    copy = Variable(f"{tensor.name}_read", tensor.dtype, None)
    graph.nodes.append(Node("Identity", inputs=[tensor], outputs=[copy]))
    return copy
