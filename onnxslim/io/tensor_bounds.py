"""The sizes of the tensors that a model makes while it runs, held against `limits`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.errors import ModelError
from onnxslim.graph.ir import node_label, walk_graphs
from onnxslim.io.model import Model
from onnxslim.limits import MOST_TENSOR_BYTES, MOST_TENSOR_OF_FILE


def check_sizes(model: Model) -> None:
    """Refuse a model in which a tensor is too large, as far as its shapes are known.

    Raises:
        ModelError: one is; with its name.
    """
    most = max(MOST_TENSOR_BYTES, MOST_TENSOR_OF_FILE * model.origin.file_bytes)
    for tensor, maker in _tensors(model.graph):
        nbytes = _known_bytes(tensor)
        if nbytes > most:
            raise ModelError(
                f"Tensor `{tensor.name}` ({maker}) takes {nbytes:,} bytes; {most:,} are taken at "
                "most. Declare smaller sizes."
            )


def _tensors(graph: gs.Graph) -> Iterator[tuple[gs.Tensor, str]]:
    """The tensors that are made while the model runs, and what makes them."""
    yield from ((tensor, "an input") for tensor in graph.inputs)
    for current in walk_graphs(graph):
        for node in current.nodes:
            if node.op != "Constant":  # lies in the file
                yield from ((tensor, f"{node.op} `{node_label(node)}`") for tensor in node.outputs)


def _known_bytes(tensor: gs.Tensor) -> int:
    """Bytes of a tensor whose sizes are all known, else of those that are."""
    if tensor.dtype is None or tensor.shape is None:
        return 0
    known = [size for size in tensor.shape if isinstance(size, int)]
    return int(math.prod(known) * np.dtype(tensor.dtype).itemsize)
