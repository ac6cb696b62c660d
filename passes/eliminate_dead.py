"""Remove what nothing uses: nodes, initializers, local functions, optional operands at the end.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 3] x) => (float[2, 3] y)
    <float[1] forgotten = {1.0}>
    {
        a = Exp (x)
        b = Neg (a)
        y, mask = Dropout (x)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[2, 3] x) => (float[2, 3] y) {
        y = Dropout (x)
    }
    ```
    In the same way, initial states of LSTM, GRU and RNN that are zero are left out, and the
    arithmetic that makes them.

Why it is correct:
    ONNX operators have no side effects: a value that reaches no graph output changes nothing. An
    optional output may be left out when nothing uses it, and an empty optional input at the end
    means the same as none. An initial state that is left out is zero.

Declines when:
    1. The value is an input or output of the main graph: the signature is kept.
    2. A Loop or Scan carries the value, or an If returns it: the bodies would have to change.
    3. The value is an output of a BatchNormalization before opset 14, where the number of outputs
       says whether the operator trains.

Fidelity:
    EXACT.

Reference:
    The ONNX IR specification, sections "Nodes" and "Optional inputs and outputs".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.zeros import is_zero
from onnxslim.graph.ir import Graph, Node, Variable, node_label
from onnxslim.graph.local_functions import drop_unused_functions
from onnxslim.graph.operands import is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult


@dataclass(frozen=True)
class EliminateDead(RewritePass):
    """Remove what nothing uses: nodes, initializers, local functions, optional operands."""

    name: ClassVar[str] = "eliminate-dead"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Remove unused nodes first, since they use other tensors, then what they leave unused."""
        rw = self.rewriter(graph)
        for node in rw.walk():
            if not any(rw.uses(tensor) for tensor in node.outputs):
                rw.remove(node, f"removed a {node.op} that nothing uses")
            elif node.is_onnx:
                _trim(rw, node)
        for current in rw.graphs():
            _drop_unused_initializers(rw, current)
        for function in drop_unused_functions(graph):
            rw.note(function.name, "removed a function that nothing calls")
        return rw.result()


def _drop_unused_initializers(rw: Rewriter, graph: Graph) -> None:
    for constant in graph.unused:
        rw.note(constant.name, f"removed an unused initializer of {constant.nbytes:,} bytes")
    graph.unused = []


# ----------------------------------------------------------------- optional operands


def _trim(rw: Rewriter, node: Node) -> None:
    """Drop unused optional outputs, and empty optional inputs, at the end of the lists."""
    try:
        schema = onnx.defs.get_schema(node.op, rw.opset, "")
    except onnx.defs.SchemaError:
        return
    _drop_zero_states(rw, node)
    inputs = _shorter(node.inputs, schema.inputs, lambda tensor: not tensor.name)
    if inputs < len(node.inputs):
        rw.update(node, "dropped empty inputs", inputs=list(node.inputs)[:inputs])
    if node.op == "BatchNormalization" and rw.opset < 14:
        return  # declines 3
    outputs = _shorter(node.outputs, schema.outputs, lambda tensor: not rw.uses(tensor))
    dropped = list(node.outputs)[max(outputs, 1) :]
    if dropped:
        rw.keep_outputs(node, list(node.outputs)[: max(outputs, 1)])
    for tensor in reversed(dropped):
        if tensor.name:
            rw.note(node_label(node), f"dropped the unused output `{tensor.name}`")
        else:
            rw.note(node_label(node), "dropped an empty output")


def _drop_zero_states(rw: Rewriter, node: Node) -> None:
    """Leave out initial states of zeros, which is what their absence means."""
    if node.op not in ("LSTM", "GRU", "RNN"):
        return
    states = [index for index in (5, 6) if is_present(node, index) and is_zero(node.inputs[index])]
    if states:
        inputs = [
            Variable("") if index in states else tensor for index, tensor in enumerate(node.inputs)
        ]
        rw.update(node, "dropped initial states of zeros", inputs=inputs)


def _shorter(
    tensors: Sequence[gs.Tensor],
    formal: Sequence[onnx.defs.OpSchema.FormalParameter],
    is_spare: Callable[[gs.Tensor], bool],
) -> int:
    """Number of `tensors` that remain without the optional, spare ones at the end."""
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    count = len(tensors)
    while (
        0 < count <= len(formal)
        and formal[count - 1].option == optional
        and is_spare(tensors[count - 1])
    ):
        count -= 1
    return count
