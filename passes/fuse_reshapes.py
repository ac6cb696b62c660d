"""Merge chains of operators that only change the shape into one, or none.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N, 3, 4] x) => (float[N, 12] y) {
        s = Constant <value = int64[2] {-1, 4}> ()
        t = Constant <value = int64[2] {-1, 12}> ()
        a = Reshape (x, s)
        y = Reshape (a, t)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[N, 3, 4] x) => (float[N, 12] y) {
        t = Constant <value = int64[2] {-1, 12}> ()
        y = Reshape (x, t)
    }
    ```
    Chains consist of Reshape, Flatten, Squeeze, Unsqueeze and Identity. A chain that ends in the
    shape it began with is removed.

Why it is correct:
    All of them keep the elements in row-major order, so the first input and the last shape
    determine the result. `flow.SizeFlow` knows shapes up to symbols.

Declines when:
    1. Another operator uses the value in the middle: the chain would become two nodes again.
    2. The last shape cannot be written for the first input: more than one dimension is unknown.

Fidelity:
    EXACT.

Reference:
    The ONNX operator specification: Reshape, Flatten, Squeeze, Unsqueeze.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import reshaped
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.analysis.reshaping import reshape_target
from onnxslim.errors import NotApplicable
from onnxslim.graph.ir import Node
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Shape, product
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_RESHAPING: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class FuseReshapes(RewritePass):
    """Merge chains of operators that only change the shape into one, or none."""

    name: ClassVar[str] = "fuse-reshapes"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Reshape takes its target as an input since opset 5."""
        if graph.opset < 5:
            raise NotApplicable(f"opset {graph.opset} is below 5: Reshape has no target input")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Let the last node of every chain read the first input."""
        rw = self.rewriter(graph)
        fuser = _ReshapeFuser(rw, SizeFlow(graph, rw.opset))
        for node in rw.walk(*_RESHAPING):
            fuser.shorten_chain(node)
        return rw.result()


@dataclass(frozen=True)
class _Candidate:
    """An operator that gives a chain's last shape from its first input; `cost` is in bytes."""

    op: str
    cost: int
    attrs: dict[str, Any]
    operand: gs.Tensor | np.ndarray | None = None


class _ReshapeFuser:
    def __init__(self, rw: Rewriter, flow: SizeFlow) -> None:
        self.rw = rw
        self.flow = flow

    def shorten_chain(self, node: Node) -> None:
        """Let `node` read the first input of the chain that it ends."""
        before = self.rw.producer(node.inputs[0], *_RESHAPING, "Identity")
        if before is None:
            return
        after = self.flow.shape(node.outputs[0])
        for source in self._sources(before):
            if after is not None and self.flow.shape(source) == after:
                what = "a chain of reshapes ends in the shape it began with"
                if self.rw.substitute(node, source, what):
                    return
        if self.rw.graph_of(before) is self.rw.graph_of(node):
            self._skip_over(node, before)

    def _sources(self, node: Node) -> Iterator[gs.Tensor]:
        """The tensors up the chain that `node` ends."""
        above: Node | None = node
        while above is not None:
            yield above.inputs[0]
            above = self.rw.producer(above.inputs[0], *_RESHAPING, "Identity")

    def _skip_over(self, node: Node, before: Node) -> None:
        """Let `node` read the input of `before`, if `before` goes away by that."""
        source, middle = before.inputs[0], node.inputs[0]
        best = self._cheapest(source, node)
        if best is None:
            self.rw.skip(node, "its shape cannot be written for the chain's input")  # declines 2
            return
        others = [user for user in dict.fromkeys(middle.outputs) if user is not node]
        stays = self.rw.is_output(middle) or any(
            user.op not in _RESHAPING
            or user.inputs[0] is not middle
            or self.rw.graph_of(user) is not self.rw.graph_of(node)
            or self._cheapest(source, user) is None
            for user in others
        )
        if stays:
            self.rw.skip(node, "the value in the middle of the chain is used")  # declines 1
            return
        operand = best.operand
        if isinstance(operand, np.ndarray):
            operand = self.rw.constant(operand, "axes" if "queeze" in best.op else "target")
        inputs = [source] if operand is None else [source, operand]
        self.rw.update(
            node,
            f"{before.op} and {node.op} became one {best.op}",
            op=best.op,
            inputs=inputs,
            attrs=best.attrs,
        )

    def _cheapest(self, source: gs.Tensor, node: Node) -> _Candidate | None:
        before, after = self.flow.shape(source), self.flow.shape(node.outputs[0])
        candidates = [*self._unchanged(before, after, node), *self._candidates(before, after)]
        return min(candidates, key=lambda item: item.cost, default=None)

    def _unchanged(
        self, before: Shape | None, after: Shape | None, node: Node
    ) -> Iterator[_Candidate]:
        """The node itself, where its operand gives the same shape for the first input."""
        if node.op != "Reshape":
            return
        value = self.flow.value(node.inputs[1])
        if value is None:
            return
        if node.attrs.get("allowzero", 0):
            fits = True
        elif 0 not in value.items:
            fits = None not in value.items  # an unknown item may be a 0, which copies another size
        else:
            last = max(axis for axis, size in enumerate(value.items) if size == 0)
            says = reshaped(before, value.items, copies_zero=True)
            fits = before is not None and last < len(before) and tuple(says) == after
        if fits:
            yield _Candidate("Reshape", 0, dict(node.attrs), node.inputs[1])

    def _candidates(self, before: Shape | None, after: Shape | None) -> Iterator[_Candidate]:
        if after is None:
            return
        target = reshape_target(before, after)
        if target is not None:
            # -1 costs more: it fails where another axis is empty
            yield _Candidate(
                "Reshape", 8 * len(target) + (-1 in target), {}, np.array(target, np.int64)
            )
        if before is None:
            return
        if len(after) == 2 and self.rw.opset >= 9:
            yield from _flatten(before, after)
        yield from self._squeeze("Squeeze", before, after)
        yield from self._squeeze("Unsqueeze", after, before)

    def _squeeze(self, op: str, longer: Shape, shorter: Shape) -> Iterator[_Candidate]:
        axes = _inserted_ones(longer, shorter)
        if not axes:
            return
        if self.rw.opset < 13:
            yield _Candidate(op, 2 + len(axes), {"axes": list(axes)})
        else:
            yield _Candidate(op, 8 * len(axes), {}, np.array(axes, np.int64))


def _flatten(before: Shape, after: Shape) -> Iterator[_Candidate]:
    for axis in range(len(before) + 1):
        if product(before[:axis]) == after[0] and product(before[axis:]) == after[1]:
            yield _Candidate("Flatten", 4, {"axis": axis})
            return


def _inserted_ones(longer: Shape, shorter: Shape) -> list[int]:
    """The axes of size 1 that `longer` has beyond `shorter`; [] where that is not all."""
    axes: list[int] = []
    rest = list(shorter)
    for axis, size in enumerate(longer):
        if rest and rest[0] == size:
            rest.pop(0)
        elif size == 1:
            axes.append(axis)
        else:
            return []
    return [] if rest or len(longer) - len(shorter) != len(axes) else axes
