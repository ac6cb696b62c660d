"""Inline branches of If, and bodies of Loop that run a known number of times.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N] x) => (float[N] y) {
        yes = Constant <value = bool {1}> ()
        y = If (yes) <
            then_branch = then () => (float[N] a) { a = Relu (x) },
            else_branch = other () => (float[N] b) { b = Neg (x) }
        >
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[N] x) => (float[N] y) {
        y = Relu (x)
    }
    ```
    In the same way:
    - If whose branches are the same graph runs one of them;
    - Loop that runs no iteration returns its initial values;
    - Loop that runs exactly once is its body.

Why it is correct:
    A branch may use every value that the surrounding graph may use. Nothing outside refers to the
    names inside, so they can be made unique in the graph that the nodes move to.

Declines when:
    1. The condition, or the trip count, is not known.
    2. A Loop collects one slice per iteration in an output: without iterations that output would be
       empty, and with one it gets an axis.
    3. A model output would become a model input or a constant.

Fidelity:
    EXACT.

Reference:
    The ONNX operator specification: If, Loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.ir import Constant, Graph, Node, subgraphs_of
from onnxslim.graph.operands import const_array, const_value, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import Fidelity, PassResult


@dataclass(frozen=True)
class FoldIf(Pass):
    """Inline branches of If, and bodies of Loop that run a known number of times."""

    name: ClassVar[str] = "fold-if"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Decide every If and Loop, outer before inner."""
        rw = Rewriter(graph)
        flow = SizeFlow(graph, rw.opset)
        for node in rw.walk("If", "Loop"):
            if node.op == "If":
                _branch(rw, flow, node)
            else:
                _loop(rw, flow, node)
        return rw.result()


def _branch(rw: Rewriter, flow: SizeFlow, node: Node) -> None:
    yes, no = node.attrs["then_branch"], node.attrs["else_branch"]
    condition = _known(flow, node.inputs[0])
    if condition is not None:
        which = "then" if condition else "else"
        rw.inline(node, yes if condition else no, [], f"the {which} branch always runs")
    elif _same_graph(yes, no):
        rw.inline(node, yes, [], "both branches are the same")
    else:
        rw.skip(node, "its condition is not known")  # declines 1


def _known(flow: SizeFlow, tensor: gs.Tensor) -> int | None:
    """The value of a tensor with one element, None when it is not known."""
    array = const_array(tensor)
    if array is not None:
        return int(array.reshape(-1)[0]) if array.size == 1 else None
    found = flow.ints(tensor)
    return found[0] if found is not None and len(found) == 1 else None


def _loop(rw: Rewriter, flow: SizeFlow, node: Node) -> None:
    body: Graph = node.attrs["body"]
    count = _known(flow, node.inputs[0]) if is_present(node, 0) else None
    start = _known(flow, node.inputs[1]) if is_present(node, 1) else 1
    never = count is not None and count <= 0
    if start == 0 or never:
        _never(rw, node, body)
    elif count == 1 and start == 1:
        _once(rw, node, body)
    else:
        rw.skip(node, "it runs more than once, or an unknown number of times")  # declines 1


def _never(rw: Rewriter, node: Node, body: Graph) -> None:
    """Replace a Loop that runs no iteration with its initial values."""
    carried = list(node.inputs[2:])
    if len(body.outputs) - 1 != len(carried):
        rw.skip(node, "it collects slices, and would return an empty output for them")  # declines 2
        return
    rw.replace(node, carried, "the Loop runs no iteration")


def _once(rw: Rewriter, node: Node, body: Graph) -> None:
    """Replace a Loop that runs once with its body."""
    if len(body.outputs) - 1 != len(node.inputs) - 2:
        rw.skip(node, "it collects slices, which get an axis of their own")  # declines 2
        return
    number = rw.constant(np.array(0, np.int64), "iteration")
    condition = rw.constant(np.array(True), "condition")
    rw.inline(node, body, [number, condition, *node.inputs[2:]], "the Loop runs once")


def _same_graph(a: Graph, b: Graph) -> bool:
    """Whether two graphs without inputs compute the same, node by node."""
    names: dict[gs.Tensor, gs.Tensor] = {}

    def same(left: gs.Tensor, right: gs.Tensor) -> bool:
        if left is right or names.get(left) is right:
            return True
        if not left.name and not right.name:
            return True
        x, y = const_value(left), const_value(right)
        if x is None or y is None or x.shape != y.shape or x.dtype != y.dtype:
            return False
        return _bytes(left) == _bytes(right) is not None

    if len(a.nodes) != len(b.nodes) or len(a.outputs) != len(b.outputs):
        return False
    for left, right in zip(a.nodes, b.nodes, strict=True):
        if not _same_operator(left, right):
            return False
        if not all(same(x, y) for x, y in zip(left.inputs, right.inputs, strict=True)):
            return False
        names.update(zip(left.outputs, right.outputs, strict=True))
    return all(same(x, y) for x, y in zip(a.outputs, b.outputs, strict=True))


def _bytes(tensor: gs.Tensor) -> bytes | None:
    array = const_array(tensor)
    return None if array is None or array.dtype == object else array.tobytes()


def _same_operator(a: Node, b: Node) -> bool:
    if (a.op, a.domain or "", len(a.inputs), len(a.outputs)) != (
        b.op,
        b.domain or "",
        len(b.inputs),
        len(b.outputs),
    ):
        return False
    if any(True for node in (a, b) for _ in subgraphs_of(node)):
        return False
    return dict(_plain(a)) == dict(_plain(b))


def _plain(node: Node) -> Iterator[tuple[str, Any]]:
    for name, value in node.attrs.items():
        if isinstance(value, Constant):
            yield name, (value.values.dtype, value.values.shape, value.values.tobytes())
        else:
            yield name, value
