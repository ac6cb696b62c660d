"""Inline branches of If, bodies of Loop that run a known number of times, Where in Where.

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
    - If of whose branches one returns as many axes as the nodes behind it take, and the other does
      not, runs the one (TorchScript's `squeeze`, and cells that take samples or batches);
    - Loop that runs no iteration returns its initial values;
    - Loop that runs exactly once is its body;
    - Where inside a branch of a Where of the same condition, or of its negation, is the one branch
      that is taken there;
    - Where of a Not takes its branches the other way round.

Why it is correct:
    A branch may use every value that the surrounding graph may use. Nothing outside refers to the
    names inside, so they can be made unique in the graph that the nodes move to. Where taking a
    branch makes a node fail that always runs, a run without failure takes the other branch.

Declines when:
    1. The condition, or the trip count, is not known.
    2. A Loop collects one slice per iteration in an output: without iterations that output would be
       empty, and with one it gets an axis.
    3. A model output would become a model input or a constant.
    4. The branch of the inner Where that is never taken gives the result its shape.

Fidelity:
    EXACT.

Reference:
    The ONNX operator specification: If, Loop, Where.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import broadcast
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.ir import Constant, Graph, Node, subgraphs_of
from onnxslim.graph.operands import axes_of, const_array, const_value, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult


@dataclass(frozen=True)
class FoldIf(RewritePass):
    """Inline branches of If, bodies of Loop that run a known number of times, Where in Where."""

    name: ClassVar[str] = "fold-if"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Decide every If and Loop, outer before inner."""
        rw = self.rewriter(graph)
        folder = _IfFolder(rw, SizeFlow(graph, rw.opset))
        for node in rw.walk("If", "Loop", "Where"):
            if node.op == "If":
                folder.branch(node)
            elif node.op == "Loop":
                _loop(rw, folder.flow, node)
            else:
                _where(rw, folder.flow, node)
        folder.follow_facts()
        return rw.result()


@dataclass
class _IfFolder:
    """Decides Ifs.

    Attributes:
        open: Ifs that are not decided yet.
        facts: (graph, condition, value): what a condition must be wherever the graph runs.
    """

    rw: Rewriter
    flow: SizeFlow
    open: dict[Node, None] = field(default_factory=dict)
    facts: list[tuple[gs.Graph, gs.Tensor, bool]] = field(default_factory=list)

    def branch(self, node: Node) -> None:
        """Replace an If by one of its branches, if possible."""
        yes, no = node.attrs["then_branch"], node.attrs["else_branch"]
        condition = _known(self.flow, node.inputs[0])
        if condition is not None:
            self.take(node, taken=bool(condition))
        elif _same_graph(yes, no):
            self.rw.inline(node, yes, [], "both branches are the same")
        else:
            self.open[node] = None
            taken = _only_branch(self.rw, self.flow, node)
            if taken is not None:
                self.facts.append((self.rw.graph_of(node), node.inputs[0], taken))

    def follow_facts(self) -> None:
        """Replace all Ifs whose condition is computed as one that is known where they run."""
        alive = list(filter(self.rw.is_alive, self.open))
        decided = {
            node: taken
            for node in alive  # before any is replaced, which may remove conditions
            for graph, condition, taken in self.facts
            if self.rw.is_inside(node, graph) and _same_value(node.inputs[0], condition)
        }
        for node in alive:
            if node not in decided:
                self.rw.skip(node, "its condition is not known")  # declines 1
            elif self.rw.is_alive(node):
                self.take(node, taken=decided[node])

    def take(self, node: Node, *, taken: bool) -> None:
        """Replace an If by the branch that always runs."""
        which = "then" if taken else "else"
        body = node.attrs[f"{which}_branch"]
        self.rw.inline(node, body, [], f"the {which} branch always runs")


def _same_value(a: gs.Tensor, b: gs.Tensor, depth: int = 8) -> bool:
    """Whether two tensors are computed alike from the same ones, in at most `depth` steps."""
    if a is b:
        return True
    if _same_constant(a, b):
        return True
    if len(a.inputs) != 1 or len(b.inputs) != 1 or not depth:
        return False
    left, right = a.inputs[0], b.inputs[0]
    if not _same_operator(left, right) or left.outputs.index(a) != right.outputs.index(b):
        return False
    pairs = zip(left.inputs, right.inputs, strict=True)
    return all(_same_value(x, y, depth - 1) for x, y in pairs)


def _known(flow: SizeFlow, tensor: gs.Tensor) -> int | None:
    """The value of a tensor with one element, None when it is not known."""
    array = const_array(tensor)
    if array is not None:
        return int(array.reshape(-1)[0]) if array.size == 1 else None
    found = flow.ints(tensor)
    return found[0] if found is not None and len(found) == 1 else None


# ----------------------------------------------------------------- branches that cannot be taken

_RECURRENT: Final = ("LSTM", "GRU", "RNN")
_SAME_RANK: Final = frozenset(
    {"Identity", "Relu", "Sigmoid", "Tanh", "Softmax", "Cast", "Neg", "Abs", "Exp", "Sqrt", "Clip"}
)


def _only_branch(rw: Rewriter, flow: SizeFlow, node: Node) -> bool | None:
    """The condition under which the nodes behind an If can run; None if both or none will do."""
    fails = [_fails(rw, flow, node, node.attrs[name]) for name in ("then_branch", "else_branch")]
    return fails[1] if fails[0] != fails[1] else None


def _fails(rw: Rewriter, flow: SizeFlow, node: Node, branch: Graph) -> bool:
    """Whether a node behind the If refuses what `branch` returns, for its number of axes."""
    for output, result in zip(node.outputs, branch.outputs, strict=True):
        shape = flow.shape(result)
        if shape is not None and _is_refused(rw, flow, output, len(shape)):
            return True
    return False


def _is_refused(rw: Rewriter, flow: SizeFlow, tensor: gs.Tensor, ndim: int) -> bool:
    """Whether a node that runs whenever `tensor` is computed refuses `ndim` axes of it."""
    stack = [(tensor, ndim)]
    while stack:
        tensor, ndim = stack.pop()
        home = rw.graph_of(tensor.inputs[0])
        for user in tensor.outputs:
            if rw.graph_of(user) is not home or not user.is_onnx or not rw.is_alive(user):
                continue
            place = next(i for i, operand in enumerate(user.inputs) if operand is tensor)
            wanted = _wanted_rank(flow, user, place)
            if wanted is not None and wanted != ndim:
                return True
            after = _rank_behind(rw, user, place, ndim)
            if after is not None:
                stack.append((user.outputs[0], after))
    return False


def _wanted_rank(flow: SizeFlow, node: Node, place: int) -> int | None:
    """The one number of axes that `node` takes as input `place`."""
    if node.op in _RECURRENT and place in (0, 5, 6):  # the sequence and the initial states
        return 3
    if node.op == "Gemm" and place < 2:
        return 2
    if node.op in ("Conv", "ConvTranspose") and place == 0:
        weight = flow.shape(node.inputs[1])
        return None if weight is None else len(weight)
    if node.op == "Transpose" and "perm" in node.attrs:
        return len(node.attrs["perm"])
    return None


def _rank_behind(rw: Rewriter, node: Node, place: int, ndim: int) -> int | None:
    """The number of axes of the output of `node`, whose input `place` has `ndim` axes."""
    if place or len(node.outputs) != 1:
        return None
    if node.op in _SAME_RANK:
        return ndim
    if node.op in ("Unsqueeze", "Squeeze"):
        axes = axes_of(node, rw.opset)
        return ndim + (len(axes) if node.op == "Unsqueeze" else -len(axes)) if axes else None
    return None


# ----------------------------------------------------------------- Where


def _where(rw: Rewriter, flow: SizeFlow, node: Node) -> None:
    """Take what a Where in a branch chooses there; take the branches of a Not the other way."""
    condition, is_negated = _without_not(rw, node.inputs[0])
    for place in (1, 2):
        inner = rw.producer(node.inputs[place], "Where")
        if inner is None:
            continue
        other, is_other_negated = _without_not(rw, inner.inputs[0])
        if other is not condition:
            continue
        taken = inner.inputs[place if is_negated == is_other_negated else 3 - place]
        inputs = [*node.inputs[:place], taken, *node.inputs[place + 1 :]]
        shape = broadcast([flow.shape(tensor) for tensor in inputs])
        if shape is None or None in shape or tuple(shape) != flow.shape(node.outputs[0]):
            rw.skip(node, "its shape may be that of a branch that is not taken")  # declines 4
            continue
        rw.update(node, "a Where in a branch of its own condition", inputs=inputs)
        return
    if is_negated and rw.private_producer(node.inputs[0], "Not") is not None:
        _, yes, no = node.inputs
        rw.update(node, "a Not in front of a Where", inputs=[condition, no, yes])


def _without_not(rw: Rewriter, tensor: gs.Tensor) -> tuple[gs.Tensor, bool]:
    """The tensor that `tensor` is or negates, and whether it negates it."""
    negation = rw.producer(tensor, "Not")
    return (tensor, False) if negation is None else (negation.inputs[0], True)


# ----------------------------------------------------------------- loops


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
        return (not left.name and not right.name) or _same_constant(left, right)

    if len(a.nodes) != len(b.nodes) or len(a.outputs) != len(b.outputs):
        return False
    for left, right in zip(a.nodes, b.nodes, strict=True):
        if not _same_operator(left, right):
            return False
        if not all(same(x, y) for x, y in zip(left.inputs, right.inputs, strict=True)):
            return False
        names.update(zip(left.outputs, right.outputs, strict=True))
    return all(same(x, y) for x, y in zip(a.outputs, b.outputs, strict=True))


def _same_constant(a: gs.Tensor, b: gs.Tensor) -> bool:
    x, y = const_value(a), const_value(b)
    if x is None or y is None or x.shape != y.shape or x.dtype != y.dtype:
        return False
    return _bytes(a) == _bytes(b) is not None


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
