"""Compute at compile time what depends on nothing but constants.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 3] x) => (float[6] y) {
        minus = Constant <value_ints = [-1]> ()
        same = Identity (minus)
        y = Reshape (x, same)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[2, 3] x) => (float[6] y)
    <int64[1] same = {-1}>
    {
        y = Reshape (x, same)
    }
    ```

Why it is correct:
    The constant part of the graph is cut out and run once by onnxruntime, with its optimisations
    off: the very kernels that would compute the values on every run. Folding never makes the file
    larger. A tensor is written only when it takes at most the bytes of the nodes and constants
    that become unnecessary, so a large tensor in the middle (Expand, Tile) disappears together
    with the small one behind it, and an expanded weight stays an Expand.

Declines when:
    1. The result takes more bytes than it makes unnecessary (option `growth`).
    2. The operator draws random numbers.
    3. The operator is not of the ONNX standard, or onnxruntime cannot evaluate it.
    4. The type of the result has no numpy counterpart in onnxruntime (bfloat16, float8, int4).
    5. A DequantizeLinear: onnxruntime runs what follows on the quantized values.
    6. A Constant node holds a sparse value, or is a graph output, which needs a node to compute it.
    7. The node is in a body below IR version 4, where initializers are inputs and bodies have none.
    8. The result has other sizes than ONNX infers, and than declarations behind it may hold (a
       MaxPool whose last window would lie in the padding alone).

Fidelity:
    EXACT.

Reference:
    The greedy choice of tensors to write is ours: each tensor is considered once, in topological
    order, with the nodes that only it needs (its cone).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.cut import evaluate_cut, first_failure, is_native
from onnxslim.errors import RuntimeFailure
from onnxslim.graph.dims import static_shape
from onnxslim.graph.file_bytes import constant_bytes, node_bytes, payload_bytes, static_bytes
from onnxslim.graph.ir import Constant, Node, subgraphs_of, walk_graphs
from onnxslim.graph.operands import constant_node_value, is_random
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.wire import initializer_bytes
from onnxslim.pipeline.options import at_least, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult
from onnxslim.services.evaluator import Evaluator

_MAX_BYTES: Final = 2**30  # no intermediate result may be larger
_MAX_FAILURES: Final = 32  # after so many failing nodes, all nodes of the next failing run are kept


@dataclass(frozen=True)
class FoldConstants(RewritePass):
    """Compute at compile time what depends on nothing but constants."""

    name: ClassVar[str] = "fold-constants"
    examples: ClassVar[Mapping[str, str]] = {
        "fold-constants": "what is computed from constants, where it takes no more bytes",
        "fold-constants:growth=4096": "also where it takes up to 4,096 bytes more",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    growth: int = option(0, at_least(0), "bytes by which all folds together may enlarge the file")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Turn `Constant` nodes into initializers, then fold what they feed."""
        rw = self.rewriter(graph)
        _lift_constant_nodes(rw)
        if context.evaluate is not None:
            _ConstantFolder(rw, context.evaluate, self.growth).run()
        return rw.result()


# ----------------------------------------------------------------- Constant nodes


def _lift_constant_nodes(rw: Rewriter) -> None:
    """Replace ``Constant()`` with an initializer of the same name."""
    old_ir = (rw.main.ir_version or 4) < 4
    for graph in list(rw.graphs()):
        for node in list(graph.nodes):
            if node.op != "Constant" or not node.is_onnx or rw.is_output(node.outputs[0]):
                continue
            value = constant_node_value(node)
            if value is None:
                rw.skip(node, "holds a sparse value")  # declines 6
                continue
            constant = Constant(node.outputs[0].name, value)
            constant.home = graph
            if old_ir and graph is not rw.main:
                rw.skip(node, "is in a body, which has no initializers below IR version 4")
            elif old_ir and constant_bytes(constant, is_input=old_ir) > node_bytes(node):
                rw.skip(node, "takes more bytes as an initializer below IR version 4")
            elif rw.uses(node.outputs[0]) and rw.allows(node):
                rw.substitute(node, constant, "made an initializer of a Constant")


# ----------------------------------------------------------------- engine: nodes that can be folded


class _ConstantRegion:
    """The nodes that depend on constants only, and can be evaluated, producers first.

    Attributes:
        nodes: nodes of the main graph and of bodies.
        sources: Constant nodes that stay and feed these nodes.
        needs: for each node the tensors that it or its bodies use from outside, once per use.
    """

    def __init__(self, rw: Rewriter, failed: Mapping[Node, str]) -> None:
        self.rw = rw
        self.failed = failed
        self.nodes: list[Node] = []
        self.sources: list[Node] = []
        self.needs: dict[Node, list[gs.Tensor]] = {}
        self._known: set[gs.Tensor] = set()
        self._visit(rw.main)

    def _visit(self, graph: gs.Graph) -> None:
        if graph is not self.rw.main and (self.rw.main.ir_version or 4) < 4:
            return  # declines 7
        for node in graph.nodes:
            if self.rw.is_alive(node) and not self._takes(node):
                for body in subgraphs_of(node):
                    self._visit(body)

    def _takes(self, node: Node) -> bool:
        needs = list(_needs(node))
        if not all(isinstance(t, gs.Constant) or t in self._known for t in needs):
            return False
        if node.op == "Constant" and node.is_onnx:
            if constant_node_value(node) is not None:
                self.sources.append(node)
                self._known.add(node.outputs[0])
            return True
        why = self.failed.get(node) or _why_not_evaluated(node, self.rw.opset)
        if why is not None:
            self.rw.skip(node, why)
            return False
        self.nodes.append(node)
        self.needs[node] = needs
        self._known.update(tensor for tensor in node.outputs if tensor.name)
        return True


def _needs(node: Node) -> Iterator[gs.Tensor]:
    """Every use that `node`, with its bodies, makes of tensors from outside."""
    yield from (tensor for tensor in node.inputs if tensor.name)
    for body in subgraphs_of(node):
        inside: set[gs.Tensor] = set()
        used: list[gs.Tensor] = []
        for graph in walk_graphs(body):
            inside.update(graph.inputs)
            used += graph.outputs
            for inner in graph.nodes:
                inside.update(inner.outputs)
                used += inner.inputs
        yield from (tensor for tensor in used if tensor.name and tensor not in inside)


def _why_not_evaluated(node: Node, opset: int) -> str | None:
    inner = [n for body in subgraphs_of(node) for graph in walk_graphs(body) for n in graph.nodes]
    for item in (node, *inner):
        if not item.is_onnx:  # declines 3
            return f"`{item.domain}.{item.op}` is not of the ONNX standard"
    if is_random(node, opset):
        return f"{node.op} draws random numbers"  # declines 2
    if node.op == "DequantizeLinear":
        return "keeps its input quantized, for the operators that follow"  # declines 5
    largest = max((static_bytes(tensor) or 0 for tensor in node.outputs), default=0)
    if largest > _MAX_BYTES:
        return f"the result has {largest:,} bytes, too many to compute"  # declines 1
    return None


# ----------------------------------------------------------------- engine: nodes that pay


@dataclass
class _Cone:
    """The nodes and constants that only one node needs.

    Attributes:
        freed: bytes that they take in the file.
        held: for each tensor that other nodes use too, how often the cone uses it.
    """

    freed: int
    held: dict[gs.Tensor, int]


class _FoldPlan:
    """The nodes of a region to compute now, chosen so that the file does not grow.

    Nodes are considered once, producers first. A node that does not pay is kept, and its cone joins
    the cone of the node that alone uses it. Amortized, the time is linear.
    """

    def __init__(
        self, region: _ConstantRegion, sizes: Mapping[gs.Tensor, int | None], budget: int
    ) -> None:
        self.rw = region.rw
        self.region = region
        self.sizes = sizes
        self.budget = budget
        self.old_ir = (self.rw.main.ir_version or 4) < 4
        self.cones: dict[Node, _Cone] = {}
        self.folded: set[Node] = set()
        self._left: dict[gs.Tensor, int] = {}
        for node in region.nodes:
            cone = self._cone(node)
            cost = self.cost(node)
            if cost is None or not self._pays([(cost, cone)]):
                self.cones[node] = cone
            else:
                self._fold(node, cone)
        self._fold_together()
        self.kept, self.frontier = self._live()

    def cost(self, node: Node) -> int | None:
        """Bytes of the outputs of `node` in the file; None when onnxruntime cannot return them."""
        total = 0
        for tensor in node.outputs:
            if self.rw.uses(tensor) and tensor.name:
                size = self.sizes.get(tensor)
                if size is None:
                    return None
                total += size
                total += _node_as_constant_bytes(node) if self.rw.is_output(tensor) else 0
        return total

    def _pays(self, candidates: Sequence[tuple[int, _Cone]], extra: int = 0) -> bool:
        growth = sum(cost - cone.freed for cost, cone in candidates) - extra
        if growth > self.budget:
            return False
        self.budget -= max(growth, 0)
        return True

    def _fold(self, node: Node, cone: _Cone) -> None:
        self.folded.add(node)
        for tensor, count in cone.held.items():
            self._left[tensor] = self._uses(tensor) - count

    def _uses(self, tensor: gs.Tensor) -> int:
        """Uses of `tensor`, without those by nodes that are folded."""
        if tensor not in self._left:
            self._left[tensor] = self.rw.uses(tensor)
        return self._left[tensor]

    def _cone(self, node: Node) -> _Cone:
        """The nodes and constants that `node` alone needs; their cones become part of it."""
        freed = node_bytes(node)
        held: dict[gs.Tensor, int] = {}
        pending = [(tensor, 1) for tensor in self.region.needs[node]]
        while pending:
            tensor, count = pending.pop()
            held[tensor] = held.get(tensor, 0) + count
            if held[tensor] != self._uses(tensor):
                continue  # others use it too, as far as seen
            # every use lies in the cone: the tensor goes with it, and so may its producer
            producer = self._kept_producer(tensor)
            if producer is None:
                freed += self._weight(held, tensor)
            elif all(held.get(t, 0) == self._uses(t) for t in producer.outputs):
                for output in producer.outputs:
                    held.pop(output, None)
                inner = self.cones.pop(producer)
                freed += inner.freed
                # the smaller of the two is merged into the larger: linear time in all
                if len(inner.held) > len(held):
                    inner.held, held = held, inner.held
                pending += inner.held.items()
        return _Cone(freed, held)

    def _kept_producer(self, tensor: gs.Tensor) -> Node | None:
        producer = tensor.inputs[0] if tensor.inputs else None
        return producer if producer in self.cones else None

    def _weight(self, held: dict[gs.Tensor, int], tensor: gs.Tensor) -> int:
        """Bytes that go with `tensor`, a constant or an output that is computed now."""
        if isinstance(tensor, Constant):
            del held[tensor]
            return constant_bytes(tensor, is_input=self.old_ir)
        if tensor.inputs[0] not in self.folded:
            return 0  # a Constant node that is also a graph output
        del held[tensor]
        return self.sizes[tensor] or 0

    def _fold_together(self) -> None:
        """Fold nodes that share an input and pay only together (slices of one weight)."""
        holders: dict[gs.Tensor, list[Node]] = {}
        for node, cone in self.cones.items():
            for tensor in cone.held:
                holders.setdefault(tensor, []).append(node)
        for tensor, nodes in holders.items():
            if any(node in self.folded for node in nodes):
                continue
            cones = [self.cones[node] for node in nodes]
            costs = [self.cost(node) for node in nodes]
            if sum(cone.held[tensor] for cone in cones) != self._uses(tensor):
                continue
            weight = self._shared_weight(tensor)
            if weight is None or None in costs:
                continue
            pairs = [(c, cone) for c, cone in zip(costs, cones, strict=True) if c is not None]
            if self._pays(pairs, weight):
                for node, cone in zip(nodes, cones, strict=True):
                    self._fold(node, cone)

    def _shared_weight(self, tensor: gs.Tensor) -> int | None:
        producer = self._kept_producer(tensor)
        if producer is None:
            return self._weight({tensor: 0}, tensor)
        if producer in self.folded or len(producer.outputs) > 1:
            return None
        return self.cones[producer].freed

    def _live(self) -> tuple[list[Node], list[Node]]:
        """The nodes that stay and are still needed; the nodes whose results are written."""
        inside: dict[gs.Tensor, int] = {}
        for node in self.region.nodes:
            for tensor in self.region.needs[node]:
                inside[tensor] = inside.get(tensor, 0) + 1
        demanded = {
            tensor
            for node in self.region.nodes
            for tensor in node.outputs
            if tensor.name and self.rw.uses(tensor) > inside.get(tensor, 0)
        }
        kept, frontier = [], []
        # consumers first: a kept node demands its inputs, a folded one needs none any more
        for node in reversed(self.region.nodes):
            if demanded.isdisjoint(node.outputs):
                continue
            if node in self.folded:
                frontier.append(node)
            else:
                kept.append(node)
                demanded.update(self.region.needs[node])
        return kept[::-1], frontier[::-1]


# ----------------------------------------------------------------- the pass: evaluate and replace


class _ConstantFolder:
    def __init__(self, rw: Rewriter, evaluate: Evaluator, growth: int) -> None:
        self.rw = rw
        self.evaluate = evaluate
        self.growth = growth
        self.failed: dict[Node, str] = {}
        self.values: dict[gs.Tensor, np.ndarray] = {}

    def run(self) -> None:
        region = _ConstantRegion(self.rw, self.failed)
        while True:
            plan = _FoldPlan(region, self._sizes(region), self.growth)
            wanted = [t for n in plan.frontier for t in self._used(n) if t not in self.values]
            if not wanted:
                break
            if not self._evaluate(region, wanted):
                region = _ConstantRegion(self.rw, self.failed)
        for node in plan.kept:
            self._say_why_kept(node, plan)
        for node in plan.frontier:
            if self.rw.allows(node):
                self._replace(node)

    def _used(self, node: Node) -> list[gs.Tensor]:
        return [tensor for tensor in node.outputs if tensor.name and self.rw.uses(tensor)]

    def _sizes(self, region: _ConstantRegion) -> dict[gs.Tensor, int | None]:
        """Bytes of every result in the file; 0: not known yet; None: it cannot be read back."""
        sizes: dict[gs.Tensor, int | None] = {}
        old_ir = (self.rw.main.ir_version or 4) < 4
        for node in region.nodes:
            for tensor in node.outputs:
                array, shape = self.values.get(tensor), static_shape(tensor)
                if array is not None:
                    payload = payload_bytes(array)
                    sizes[tensor] = initializer_bytes(
                        tensor.name, array.shape, payload, is_input=old_ir
                    )
                elif _is_readable(tensor):
                    known = static_bytes(tensor)
                    sizes[tensor] = (
                        initializer_bytes(tensor.name, shape, known, is_input=old_ir)
                        if known is not None and shape is not None
                        else 0
                    )
                else:
                    sizes[tensor] = None
        return sizes

    def _evaluate(self, region: _ConstantRegion, wanted: list[gs.Tensor]) -> bool:
        """Compute `wanted`; False when that failed, and the nodes at fault are noted."""
        nodes = _ancestors(region, wanted)
        opset, ir_version = self.rw.opset, self.rw.main.ir_version
        try:
            arrays = evaluate_cut(
                nodes, wanted, opset=opset, ir_version=ir_version, evaluate=self.evaluate
            )
        except RuntimeFailure as error:
            self._blame(nodes, str(error))
            return False
        for tensor, array in zip(wanted, arrays, strict=True):
            if array.dtype != np.dtype(tensor.dtype):
                self.failed[tensor.inputs[0]] = f"onnxruntime returns it as {array.dtype}"
                return False
            if not _has_shape(array, tensor):  # declines 8
                why = f"its shape is inferred as {tensor.shape}, and computed as {[*array.shape]}"
                self.failed[tensor.inputs[0]] = why
                return False
            self.values[tensor] = array
        return True

    def _blame(self, nodes: Sequence[Node], message: str) -> None:
        opset, ir_version = self.rw.opset, self.rw.main.ir_version
        found = first_failure(nodes, opset=opset, ir_version=ir_version, evaluate=self.evaluate)
        culprit, why = (None, message) if found is None else (nodes[found[0]], found[1])
        # one that was told before, and one too many, are reasons to give all of them up
        if culprit is None or culprit in self.failed or len(self.failed) >= _MAX_FAILURES:
            self.failed.update(dict.fromkeys(nodes, message))
            return
        self.failed[culprit] = why
        if "NOT_IMPLEMENTED" in why:  # the same operator on the same types will fail again
            kind = _kind(culprit)
            self.failed.update({node: why for node in nodes if _kind(node) == kind})

    def _say_why_kept(self, node: Node, plan: _FoldPlan) -> None:
        cost = plan.cost(node)
        if cost is None:
            types = ", ".join(str(t.dtype or "unknown") for t in self._used(node))
            self.rw.skip(node, f"the type of its result cannot be read back: {types}")
            return
        self.rw.skip(
            node,
            f"the result takes {cost:,} bytes, more than what it makes unnecessary "
            f"(growth={self.growth})",
        )

    def _replace(self, node: Node) -> None:
        """Replace ``node`` with the constants it computes."""
        used = self._used(node)
        returned = [tensor for tensor in used if self.rw.is_output(tensor)]
        if len(returned) > 1:
            self.rw.skip(node, "returns more than one graph output")
            return
        what = f"computed {node.op}, {sum(self.values[t].nbytes for t in used):,} bytes"
        for tensor in used:
            if tensor not in returned and len(node.outputs) > 1:
                self.rw.redirect(tensor, self._constant(node, tensor))
        if len(node.outputs) == 1:
            self.rw.substitute(node, self._constant(node, used[0]), what)
        elif returned:
            self.rw.keep_outputs(node, returned)
            self.rw.substitute(node, self._constant(node, returned[0]), what)
        else:
            self.rw.remove(node, what)

    def _constant(self, node: Node, tensor: gs.Tensor) -> Constant:
        values = self.values[tensor]
        values.flags.writeable = False
        constant = Constant(tensor.name, values)
        constant.home = self.rw.graph_of(node)
        return constant


def _kind(node: Node) -> tuple[str, ...]:
    return (node.op, *(str(tensor.dtype) for tensor in node.inputs))


def _ancestors(region: _ConstantRegion, wanted: Sequence[gs.Tensor]) -> list[Node]:
    """The nodes of `region`, and sources, that `wanted` depends on, producers first."""
    needed = set(wanted)
    nodes = []
    for node in reversed(region.nodes):
        if not needed.isdisjoint(node.outputs):
            nodes.append(node)
            needed.update(region.needs[node])
    sources = [node for node in region.sources if not needed.isdisjoint(node.outputs)]
    return [*sources, *reversed(nodes)]


def _has_shape(array: np.ndarray, tensor: gs.Tensor) -> bool:
    """Whether no size that is inferred of `tensor` contradicts the one that was computed."""
    shape = tensor.shape
    if shape is None or len(shape) != array.ndim:
        return shape is None
    pairs = zip(array.shape, shape, strict=True)
    return all(size == known for size, known in pairs if isinstance(known, int))


def _is_readable(tensor: gs.Tensor) -> bool:
    is_typed = tensor.type == "tensor_type" and tensor.dtype is not None
    return is_typed and is_native(np.dtype(tensor.dtype))


def _node_as_constant_bytes(node: Node) -> int:
    """Bytes that ``node``, turned into a `Constant` node, takes beyond those of an initializer."""
    return 30 + len((node.name or "").encode())
