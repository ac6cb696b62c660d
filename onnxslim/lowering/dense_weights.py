"""Weights in forms of their own, as plain constants or by operators of the standard.

Local functions become their nodes, sparse initializers dense ones, and where an engine lacks the
operators that decode weights, these are computed here, once.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.cut import evaluate_cut
from onnxslim.errors import RuntimeFailure
from onnxslim.graph.counts import constants_of
from onnxslim.graph.inlining import inline_functions
from onnxslim.graph.ir import (
    Constant,
    Graph,
    Node,
    StoredSparse,
    Variable,
    ancestors,
    node_label,
    walk_graphs,
)
from onnxslim.graph.local_functions import drop_unused_functions
from onnxslim.graph.operands import const_array, const_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lowering.obstacles import decoders, is_coded_constant
from onnxslim.pipeline.passes import Context
from onnxslim.records import PassResult
from onnxslim.render.units import bytes_text


def inlined(graph: Graph) -> PassResult:
    """Replace the calls of all local functions."""
    return inline_functions(graph, with_own=True)


def drop_unused(graph: Graph) -> None:
    """Drop the functions that nothing calls any more, and the domains that nothing uses."""
    drop_unused_functions(graph)
    used = {node.domain or "" for current in walk_graphs(graph) for node in current.nodes}
    kept = [entry for entry in graph.import_domains if entry.domain in (used | {"", "ai.onnx"})]
    graph.import_domains[:] = kept


def densified(rw: Rewriter) -> None:
    """Make sparse initializers and sparse constants dense."""
    for graph in rw.graphs():
        for constant in constants_of(graph):
            stored = constant.stored
            if isinstance(stored, StoredSparse):
                sizes = f"{bytes_text(stored.nbytes)} to {bytes_text(stored.load().nbytes)}"
                rw.set_values(constant, np.array(stored.load()))
                rw.note(constant.name, f"a sparse initializer became dense: {sizes}")
        for node in graph.nodes:
            sparse = node.attrs.get("sparse_value") if node.op == "Constant" else None
            if sparse is not None:
                values = np.array(StoredSparse(sparse.sparse_tensor).load())
                held = Constant(f"{node_label(node)}_dense", values)
                rw.update(node, "a sparse constant became dense", attrs={"value": held})


# ---------------------------------------------------------------------------- decoders


def folded(graph: Graph, context: Context) -> PassResult:
    """Compute what decodes weights, and let rows that are picked from codes be rows of floats."""
    rw = Rewriter(graph)
    for node in list(decoders(graph)):
        if node.op == "Gather" and rw.is_alive(node):
            _pick_floats(rw, node)
    if context.evaluate is None:
        return rw.result()
    wanted = _decoded(graph)
    for tensor in wanted:
        nodes = _in_order(graph, ancestors([tensor]))
        try:
            (values,) = evaluate_cut(
                nodes,
                [tensor],
                opset=rw.opset,
                ir_version=graph.ir_version,
                evaluate=context.evaluate,
            )
        except RuntimeFailure as error:
            rw.skip(node_label(tensor.inputs[0]), f"onnxruntime does not compute it alone: {error}")
            continue
        made = rw.constant(np.array(values), f"{tensor.name}_decoded")
        what = f"the weight is stored decoded, in {bytes_text(values.nbytes)}"
        rw.substitute(tensor.inputs[0], made, what)
    return rw.result()


def _decoded(graph: Graph) -> list[Variable]:
    """What nodes that depend on constants alone hand to others, and needs a decoder."""
    reading = set(decoders(graph))
    coded: set[gs.Tensor] = set()
    constant: set[gs.Tensor] = set()
    border: dict[gs.Tensor, None] = {}
    for current in walk_graphs(graph):
        for node in current.nodes:
            if _is_constant(node, constant):
                constant.update(node.outputs)
                if node in reading or any(tensor in coded for tensor in node.inputs):
                    coded.update(node.outputs)
                continue
            border |= dict.fromkeys(tensor for tensor in node.inputs if tensor in coded)
        border |= dict.fromkeys(tensor for tensor in current.outputs if tensor in coded)
    return [t for t in border if isinstance(t, Variable) and len(t.inputs[0].outputs) == 1]


def _is_constant(node: Node, constant: set[gs.Tensor]) -> bool:
    """Whether a node of the standard depends on constants alone."""
    if node.domain or node.op == "DequantizeLinear" or not node.outputs:
        return False
    if node.op == "Constant":
        return True
    known = (not t.name or t in constant or const_value(t) is not None for t in node.inputs)
    is_plain = not any(isinstance(value, gs.Graph) for value in node.attrs.values())
    return bool(node.inputs) and is_plain and all(known)


def _in_order(graph: Graph, nodes: set[Node]) -> list[Node]:
    return [node for current in walk_graphs(graph) for node in current.nodes if node in nodes]


def _pick_floats(rw: Rewriter, node: Node) -> None:
    """Let a Gather of codes, whose rows become floats, pick from a table of floats."""
    table, users = node.inputs[0], list(node.outputs[0].outputs)
    codes = const_array(table) if is_coded_constant(table) else None
    kinds = {int(user.attrs.get("to", 0)) for user in users if user.op == "Cast"}
    if codes is None or rw.is_output(node.outputs[0]) or len(kinds) != 1:
        return
    if any(user.op != "Cast" for user in users):
        return
    floats = codes.astype(users[0].outputs[0].dtype or np.float32)
    stored = rw.constant(floats, f"{table.name}_floats")
    node.outputs[0].dtype = floats.dtype
    rw.update(node, "Gather picks rows of floats", inputs=[stored, *node.inputs[1:]])
    for user in users:
        rw.substitute(user, node.outputs[0], "the rows are floats already")
