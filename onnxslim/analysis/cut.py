"""Run part of a graph on its own: nodes that depend on nothing but constants.

The nodes may come from several graphs (bodies of If and Loop), as long as all their inputs are
constant or computed by nodes before them. They become one flat model, which runs once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.errors import RuntimeFailure
from onnxslim.graph.clone import clone_graph
from onnxslim.graph.ir import (
    Constant,
    Graph,
    Node,
    StoredSparse,
    Variable,
    redirect_inputs,
    walk_graphs,
)
from onnxslim.graph.proto import graph_to_proto
from onnxslim.services.evaluator import Evaluator

_FED_FROM_BYTES = 1024  # larger constants are given as inputs: a model cannot exceed 2 GB
_EMBED_ALL = 2**62
_IR_VERSION = 10  # the first that knows every element type up to int4


def is_native(dtype: np.dtype[np.generic]) -> bool:
    """Whether onnxruntime gives and takes arrays of this type (not bfloat16, float8, int4)."""
    return dtype.kind in "biufO"


def evaluate_cut(
    nodes: Sequence[Node],
    wanted: Sequence[gs.Tensor],
    *,
    opset: int,
    ir_version: int | None,
    evaluate: Evaluator,
) -> list[np.ndarray]:
    """The values of `wanted`, outputs of `nodes`.

    Args:
        nodes: producers before consumers, standard operators only.
        wanted: tensors of native types.
        opset: version of the standard operators.
        ir_version: IR version of the model that the nodes come from.
        evaluate: runs the model.

    Raises:
        RuntimeFailure: onnxruntime cannot run them.
    """
    cut = _ConstantCut(nodes, wanted)
    return [np.asarray(value) for value in cut.run(opset, ir_version, evaluate)]


def first_failure(
    nodes: Sequence[Node], *, opset: int, ir_version: int | None, evaluate: Evaluator
) -> tuple[int, str] | None:
    """The index of the first node that cannot be evaluated, and why; None when all can.

    Runs O(log n) models.
    """

    def failure(count: int) -> str | None:
        last = next(tensor for tensor in nodes[count - 1].outputs if tensor.name)
        cut = _ConstantCut(nodes[:count], [last])
        cut.return_shape_of_output()
        try:
            cut.run(opset, ir_version, evaluate)
        except RuntimeFailure as error:
            return str(error)
        return None

    why = failure(len(nodes))
    if why is None:
        return None
    good, bad = 0, len(nodes)
    while bad - good > 1:
        middle = (good + bad) // 2
        found = failure(middle)
        if found is None:
            good = middle
        else:
            bad, why = middle, found
    return bad - 1, why


class _ConstantCut:
    """A copy of some nodes as a graph of their own, with all tensors renamed."""

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[gs.Tensor]) -> None:
        self.graph = clone_graph(Graph(nodes=list(nodes), outputs=list(outputs), name="cut"))
        self.feeds: dict[str, np.ndarray] = {}
        for node in self.graph.nodes:
            node.name = ""  # names from several graphs may clash
            for key, value in node.attrs.items():  # what a Constant holds may lie in the file
                if isinstance(value, Constant) and value.dtype.kind != "O":
                    node.attrs[key] = Constant(value.name, value.values)
        tensors = {id(tensor): tensor for tensor in _tensors(self.graph)}
        for index, tensor in enumerate(tensors.values()):
            tensor.name = f"t{index}"
            tensor.info = None  # the type that the file declares may be wrong
            if isinstance(tensor, Constant):
                self._feed(tensor)
        for tensor in self.graph.outputs:
            tensor.shape = None

    def _feed(self, constant: Constant) -> None:
        sparse = isinstance(constant.stored, StoredSparse)
        if sparse or constant.nbytes < _FED_FROM_BYTES or not is_native(constant.dtype):
            return
        values = constant.values
        fed = Variable(constant.name, values.dtype, list(values.shape))
        redirect_inputs(list(constant.outputs), constant, fed)
        self.graph.inputs.append(fed)
        self.feeds[fed.name] = values

    def return_shape_of_output(self) -> None:
        """Return the output's shape in its place, which works for every type and costs nothing."""
        (output,) = self.graph.outputs
        shape = Variable("shape")
        op = "SequenceLength" if output.type == "sequence_type" else "Shape"
        self.graph.nodes.append(Node(op, inputs=[output], outputs=[shape]))
        self.graph.outputs = [shape]

    def run(self, opset: int, ir_version: int | None, evaluate: Evaluator) -> list[np.ndarray]:
        model = onnx.ModelProto(ir_version=max(ir_version or 0, _IR_VERSION))
        model.opset_import.add(domain="", version=opset)
        self.graph.import_domains = list(model.opset_import)  # say of what type attributes are
        model.graph.CopyFrom(graph_to_proto(self.graph, _EMBED_ALL)[0])
        return evaluate(model, self.feeds)


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    for current in walk_graphs(graph):
        for tensor in (*current.inputs, *current.outputs):
            if tensor.name:
                yield tensor
        for node in current.nodes:
            for tensor in (*node.inputs, *node.outputs):
                if tensor.name:
                    yield tensor
