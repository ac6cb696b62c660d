"""Guarded edits of a graph: every pass changes the graph through a `Rewriter`.

An edit is validated before anything is touched, logged as a `Change`, and cleans up after itself:
a node whose outputs nobody uses any more is removed at once, with what fed only it. Nodes around
an edit are visited again, so a pass reaches its own fixpoint in one run, in linear time.

    rw = Rewriter(graph)
    for node in rw.walk("Cast"):
        if node.attrs["to"] == ...:
            rw.substitute(node, node.inputs[0], "removed a Cast to the same type")
    return rw.result()

A rewrite always keeps the name of the tensor that it computes: graph outputs keep their names, and
a value that a user knows by name still exists under it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxslim.errors import PromiseBroken
from onnxslim.graph.ir import (
    Constant,
    Graph,
    Node,
    Variable,
    node_label,
    redirect_inputs,
    subgraphs_of,
    walk_graphs,
)
from onnxslim.graph.operands import clip_of_relu, const_array, vectors_for_scalars
from onnxslim.graph.order import sort_topologically
from onnxslim.graph.proto import confirms
from onnxslim.records import Change, Fidelity, PassResult, Skip

_VISITS_PER_NODE = 100


class Rewriter:
    """Edits of one graph and the graphs nested in it, by one pass."""

    def __init__(self, graph: gs.Graph, allows: Callable[[str], bool] | None = None) -> None:
        """Edit `graph`, and at no node whose first output has a name that `allows` refuses."""
        self.main = graph
        self._allows = allows
        self._kept: dict[Node, str] = {}
        self._site: str | None = None  # the node that is visited
        self.opset: int = graph.opset
        self.fidelity = Fidelity.EXACT
        self.changes: list[Change] = []
        self.skips: dict[tuple[str, str], Skip] = {}
        self._graph_of: dict[Node, gs.Graph] = {}
        self._parent: dict[gs.Graph, Node | None] = {graph: None}
        self._outputs: dict[gs.Tensor, int] = {}
        self._inserted: dict[Node, list[Node]] = {}
        self._removed: set[Node] = set()
        self._released: list[gs.Tensor] = []  # by `set_input`
        self._queue: deque[Node] = deque()
        self._queued: set[Node] = set()
        self._names: set[str] | None = None
        self._numbers: dict[str, int] = {}
        self._node_names: dict[gs.Graph, set[str]] = {}
        for current in walk_graphs(graph):
            self._register(current)

    # ----------------------------------------------------------------- looking

    def walk(self, *ops: str, domain: str | None = None) -> Iterator[Node]:
        """The live nodes with one of `ops` (all when none is given), producers first.

        Nodes that an edit touches come again; bodies of If, Loop and Scan are included.

        Raises:
            PromiseBroken: the rewrites do not come to an end.
        """
        wanted = frozenset(ops)
        self._queue.extend(node for graph in walk_graphs(self.main) for node in graph.nodes)
        self._queued.update(self._queue)
        visits, limit = 0, _VISITS_PER_NODE * len(self._queue) + 1000
        while self._queue:
            node = self._queue.popleft()
            self._queued.discard(node)
            if node in self._removed or (wanted and node.op not in wanted):
                continue
            if wanted and (node.domain or "") not in ("", "ai.onnx") and node.domain != domain:
                continue
            visits += 1
            if visits > limit:
                raise PromiseBroken(f"Rewrites around `{node_label(node)}` do not come to an end.")
            if not self.allows(node):
                continue
            self._site = node_label(node)
            yield node
        self._site = None

    def allows(self, place: gs.Node | str) -> bool:
        """Whether there may be rewrites at a node, or at a constant of this name.

        `walk` asks for every node; a pass that does not walk asks before each edit.
        """
        label = place if isinstance(place, str) else node_label(place)
        if not isinstance(place, str) and self.is_kept(place):
            self.skip(label, self._kept[place])
            return False
        if self._allows is None or self._allows(label):
            return True
        self.skip(label, "`skip` leaves it alone")
        return False

    def keep(self, nodes: Mapping[Node, str]) -> None:
        """Let `walk` leave nodes as they are, each for a reason.

        A rewrite of several nodes asks `is_kept` for those that it does not come to by `walk`.
        """
        self._kept.update(nodes)

    def is_kept(self, node: gs.Node) -> bool:
        """Whether `node` is to stay as it is (see `keep`)."""
        return node in self._kept

    def graphs(self) -> Iterator[gs.Graph]:
        """The main graph and all graphs nested in it."""
        return walk_graphs(self.main)

    def graph_of(self, node: gs.Node) -> gs.Graph:
        """The graph that holds `node`."""
        return self._graph_of[node]

    def is_inside(self, node: gs.Node, graph: gs.Graph) -> bool:
        """Whether `node` lies in `graph` or in a body nested in it, so that it runs only then."""
        current = self._graph_of[node]
        while current is not graph:
            parent = self._parent[current]
            if parent is None:
                return False
            current = self._graph_of[parent]
        return True

    def is_alive(self, node: gs.Node) -> bool:
        """Whether `node` has not been removed by this pass."""
        return node not in self._removed

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether some graph returns `tensor`."""
        return self._outputs.get(tensor, 0) > 0

    def is_doubtful(self, tensor: gs.Tensor) -> bool:
        """Whether a graph returns `tensor` under a shape that inference does not confirm.

        onnxruntime only warns of an output whose declared shape is wrong, but believes it in the
        nodes that read the output: an edit may not give it more readers.
        """
        return isinstance(tensor, Variable) and self.is_output(tensor) and not confirms(tensor)

    def uses(self, tensor: gs.Tensor) -> int:
        """How often `tensor` is used: node inputs, bodies included, and graph outputs."""
        return len(tensor.outputs) + self._outputs.get(tensor, 0)

    def producer(self, tensor: gs.Tensor, *ops: str) -> Node | None:
        """The node that computes `tensor`, if it is a standard operator among `ops`."""
        if len(tensor.inputs) != 1:
            return None
        node = tensor.inputs[0]
        if ops and (node.op not in ops or (node.domain or "") not in ("", "ai.onnx")):
            return None
        return node  # type: ignore[no-any-return]

    def private_producer(self, tensor: gs.Tensor, *ops: str) -> Node | None:
        """`producer`, if `tensor` is its only used output and has one use, in the same graph."""
        node = self.producer(tensor, *ops)
        if node is None or self.uses(tensor) != 1:
            return None
        if any(self.uses(other) for other in node.outputs if other is not tensor):
            return None
        if tensor.outputs and self._graph_of[tensor.outputs[0]] is not self._graph_of[node]:
            return None
        return node

    # ----------------------------------------------------------------- editing

    def constant(self, values: np.ndarray, name: str) -> Constant:
        """A new constant; `name` is made unique. `values` must not be written to afterwards."""
        values = np.asarray(values)
        values.flags.writeable = False
        return Constant(self.fresh_name(name), values)

    def insert(
        self,
        before: Node,
        op: str,
        inputs: Sequence[gs.Tensor],
        attrs: dict[str, Any] | None = None,
        *,
        name: str,
        dtype: Any = None,
        shape: Sequence[int | str | None] | None = None,
        outputs: int = 1,
        domain: str | None = None,
    ) -> list[Variable]:
        """Put a new node in front of `before`, in its graph; returns its output tensors.

        Args:
            before: the node that will, directly or not, use the new one.
            op: operator, or local function.
            inputs: tensors visible there.
            attrs: attributes by name.
            name: of the outputs, as far as it is free; made unique.
            dtype: numpy dtype of the outputs, when known.
            shape: shape of the outputs, when known.
            outputs: number of outputs.
            domain: domain of the operator; None: the ONNX standard.
        """
        kept = None if shape is None else list(shape)
        results = [Variable(self.fresh_name(name), dtype, kept) for _ in range(outputs)]
        node = Node(op, None, dict(attrs or {}), list(inputs), list(results), domain)
        graph = self._graph_of[before]
        self._graph_of[node] = graph
        self._inserted.setdefault(before, []).append(node)
        self._register_bodies(node)
        self._touch(node)
        return results

    def update(
        self,
        node: Node,
        what: str,
        *,
        op: str | None = None,
        inputs: Sequence[gs.Tensor] | None = None,
        attrs: dict[str, Any] | None = None,
        fidelity: Fidelity = Fidelity.EXACT,
        domain: str | None = None,
    ) -> None:
        """Make `node` compute its outputs in another way; arguments left out change nothing.

        Args:
            node: keeps its outputs, and so their names.
            what: the change in words, for the report.
            op: new operator.
            inputs: new inputs; nodes that only the old ones needed are removed.
            attrs: new attributes, replacing all old ones.
            fidelity: what this edit promises.
            domain: domain of the new operator; None: the ONNX standard.
        """
        bodies = subgraphs_of(node)
        if op is not None:
            if node.op == "Constant" != op:
                node.name = ""  # Constants of a file may share a name; onnxruntime lets no others
            node.op = op
            node.domain = domain
        if attrs is not None:
            bodies = [body for body in bodies if not _holds(attrs, body)]
            node.attrs = attrs
            node.attr_types = {}
            self._drop_bodies(bodies)
            self._register_bodies(node)
        if inputs is not None:
            old = list(node.inputs)
            node.inputs.clear()
            node.inputs.extend(inputs)
            self._release(old)
        self._log(node_label(node), what, fidelity)
        self._touch(node)
        self._touch_users(node)

    def set_input(self, node: Node, index: int, tensor: gs.Tensor) -> None:
        """Let `node` read `tensor` as input `index`, which may be one that it leaves out so far.

        Nodes that only the old input needed are removed at the end, so that the graph can run until
        then. The caller reports the change (see `note`).
        """
        while len(node.inputs) <= index:
            node.inputs.append(Variable(""))
        self._released.append(node.inputs[index])
        node.inputs[index] = tensor
        self._touch(node)

    def keep_outputs(self, node: Node, kept: Sequence[gs.Tensor]) -> None:
        """Let `node` compute only `kept` of its outputs; the caller reports the change.

        Raises:
            PromiseBroken: another output is used.
        """
        if any(self.uses(tensor) for tensor in node.outputs if tensor not in kept):
            raise PromiseBroken(f"`{node_label(node)}` was to drop outputs that are still used.")
        kept = list(kept)
        node.outputs.clear()
        node.outputs.extend(kept)

    def set_values(self, constant: Constant, values: np.ndarray | LazyValues) -> None:
        """Give `constant`, an initializer or the value of a `Constant` node, other values.

        `values` must not be written to afterwards. The caller reports the change (see `note`).

        Raises:
            PromiseBroken: a graph returns the constant, and its type or shape would change.
        """
        is_alike = values.dtype == constant.dtype and tuple(values.shape) == tuple(constant.shape)
        if self.is_output(constant) and not is_alike:
            raise PromiseBroken(f"The type and shape of `{constant.name}` are promised to callers.")
        constant.values = values
        for user in constant.outputs:
            self._touch(user)

    def redirect(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Let every node that uses `old` use `new`, of the same type and shape, and visit it again.

        `new` must be visible wherever `old` is used. What made `old` stays (see `remove`), and the
        caller reports the change (see `note`).

        Raises:
            PromiseBroken: a graph returns `old`, and so would go on using it (see `substitute`).
        """
        if self.is_output(old):
            raise PromiseBroken(f"`{old.name}` is an output of a graph: its users cannot leave it.")
        self._redirect(old, new)

    def can_substitute(self, node: Node, new: gs.Tensor) -> bool:
        """Whether `substitute(node, new)` is possible: see there."""
        old = node.outputs[0]
        if any(self.uses(other) for other in node.outputs[1:]) or self.is_doubtful(new):
            return False
        if not self.is_output(old):
            return True
        if self.is_doubtful(old) and self.uses(new) > 1:
            return False
        return self._can_take_name(old, new)

    def substitute(
        self, node: Node, new: gs.Tensor, what: str, fidelity: Fidelity = Fidelity.EXACT
    ) -> bool:
        """Let everything that uses `node`'s first output use `new` instead, and remove `node`.

        Where that output is a graph output, `new` takes over its name; that is impossible when
        `new` is itself an input or output of a graph, is constant, or lives elsewhere. Then, a
        constant becomes the value of a `Constant` node, and otherwise nothing happens. Nothing
        happens either when a tensor of a doubtful shape would get more readers (`is_doubtful`).

        Returns:
            Whether the graph was changed.
        """
        old = node.outputs[0]
        if not self.can_substitute(node, new):
            return self._as_constant_node(node, new, what, fidelity)
        self._redirect(old, new)
        if isinstance(new, gs.Variable) and isinstance(old, gs.Variable):
            new.dtype = old.dtype if new.dtype is None else new.dtype
            new.shape = old.shape if new.shape is None else new.shape
        if self.is_output(old):
            self._take_name(old, new)
        label = new.name if self.is_output(new) else node_label(node)
        self._log(label, what, fidelity)
        self._kill(node)
        if new.inputs:
            self._touch(new.inputs[0])
        return True

    def remove(self, node: Node, what: str) -> None:
        """Remove a node whose outputs nothing uses."""
        if any(self.uses(tensor) for tensor in node.outputs if tensor.name):
            raise PromiseBroken(f"`{node_label(node)}` was to be removed but is still used.")
        self._log(node_label(node), what, Fidelity.EXACT)
        self._kill(node)

    def inline(self, node: Node, body: Graph, inputs: Sequence[gs.Tensor], what: str) -> None:
        """Replace `node` by the nodes of one of its bodies; body outputs become its outputs.

        Args:
            node: an If, a Loop known to run once, or the call of a local function.
            body: the graph to move out, or one that is new to the model and shares no tensor with
                it; its inputs are replaced by `inputs` in order. Its last outputs count: the first
                one of a Loop's body only says whether to go on.
            inputs: one tensor for each input of `body`.
            what: the change in words.
        """
        is_new = body not in self._parent
        if is_new:
            self._admit(body, node)
        for formal, actual in zip(body.inputs, inputs, strict=True):
            self._substitute_formal(body, formal, actual)
        graph = self._graph_of[node]
        moved, results = list(body.nodes), list(body.outputs)
        for tensor in results:
            self._outputs[tensor] -= 1
        body.nodes, body.outputs, body.inputs = [], [], []
        if not is_new:  # those of a new body are unique already
            self._unique_names(moved, results, body)
        taken = self._names_of_nodes(graph)
        for inner in moved:
            if inner.name in taken:  # onnxruntime refuses two nodes of a graph with one name
                inner.name = ""
            taken.add(inner.name)
            self._graph_of[inner] = graph
        self._inserted.setdefault(node, []).extend(moved)
        split = len(results) - len(node.outputs)
        self.replace(node, results[split:], what)
        self._release(results[:split])
        for inner in moved:
            self._touch(inner)

    def _names_of_nodes(self, graph: gs.Graph) -> set[str]:
        """Names of nodes that `graph` has or had."""
        if graph not in self._node_names:
            homes = self._graph_of.items()  # nodes that were inserted are not in `graph.nodes` yet
            self._node_names[graph] = {other.name for other, home in homes if home is graph}
        return self._node_names[graph]

    def _admit(self, body: Graph, node: Node) -> None:
        """Register `body`, which is new to the model, as if it were one of `node`."""
        self.fresh_name("_")  # fills the set of names
        for graph in walk_graphs(body):
            self._parent.setdefault(graph, node)
            graph.import_domains, graph.opset = self.main.import_domains, self.opset
            graph.ir_version = self.main.ir_version
            graph.local_functions = self.main.local_functions
            for tensor in {id(tensor): tensor for tensor in _tensors_of(graph)}.values():
                if tensor.name:
                    tensor.name = self.fresh_name(tensor.name)
            self._register(graph)

    def _substitute_formal(self, body: Graph, formal: gs.Tensor, actual: gs.Tensor) -> None:
        """Let `body`, and what is nested in it, use `actual` for its input `formal`."""
        self._redirect(formal, actual)
        for graph in walk_graphs(body):
            for index, tensor in enumerate(graph.outputs):
                if tensor is formal:
                    graph.outputs[index] = actual
                    self._outputs[formal] -= 1
                    self._outputs[actual] = self._outputs.get(actual, 0) + 1

    def copied(self, node: Node, suffix: str) -> list[Variable]:
        """Put a copy of `node`, with its name and metadata, in front of it.

        Returns:
            The outputs of the copy, which nobody reads yet. Their names end in `suffix`; those of
            outputs that are left out stay empty.
        """
        made = self.insert(
            node,
            node.op,
            list(node.inputs),
            dict(node.attrs),
            name=f"{node_label(node)}_{suffix}",
            outputs=len(node.outputs),
            domain=node.domain,
        )
        copy: Node = made[0].inputs[0]
        copy.name, node.name = node.name, ""
        copy.extra, copy.attr_types = node.extra, dict(node.attr_types)
        node.extra = None
        for tensor, old in zip(made, node.outputs, strict=True):
            tensor.dtype, tensor.shape = old.dtype, old.shape
            if not old.name:
                tensor.name = ""
        return made

    def replace(self, node: Node, results: Sequence[gs.Tensor], what: str) -> None:
        """Let users of `node`'s outputs use `results` instead, one for each, and remove `node`.

        Where a graph output cannot hand its name over to its result, an Identity computes it.
        """
        self._log(node_label(node), what, Fidelity.EXACT)
        for old, new in zip(list(node.outputs), results, strict=True):
            self._hand_over(node, old, new)
        self._kill(node)

    def replace_constant(
        self,
        tensor: gs.Tensor,
        op: str,
        inputs: Sequence[gs.Tensor],
        what: str,
        fidelity: Fidelity,
        *,
        attrs: dict[str, Any] | None = None,
        domain: str | None = None,
    ) -> None:
        """Replace a constant by a node that computes it, for all that use it.

        A `Constant` node becomes the new node. For an initializer, a node of the main graph is put
        before one of those that use it, and its output is seen from all bodies; it keeps the
        constant's name unless that is a body's own.

        Args:
            tensor: output of a `Constant` node, or an initializer that no graph returns.
            op: operator of one output, or local function.
            inputs: tensors visible where the node stands.
            what: the change in words.
            fidelity: what this edit promises.
            attrs: attributes by name.
            domain: domain of the operator; None: the ONNX standard.
        """
        if isinstance(tensor, Constant):
            made = self._insert_for(tensor, op, inputs, attrs, domain)
            self.redirect(tensor, made)
            if tensor.home is self.main:
                made.name, tensor.name = tensor.name, made.name
            self._log(made.name, what, fidelity)
            return
        node = self.producer(tensor, "Constant")
        if node is None:
            raise PromiseBroken(f"`{tensor.name}` is no constant.")
        attrs = dict(attrs or {})
        self.update(node, what, op=op, inputs=inputs, attrs=attrs, fidelity=fidelity, domain=domain)

    def _insert_for(
        self,
        constant: Constant,
        op: str,
        inputs: Sequence[gs.Tensor],
        attrs: dict[str, Any] | None,
        domain: str | None,
    ) -> Variable:
        """The output of a new node of the main graph, before the first use of `constant`."""
        if self.is_output(constant) or not constant.outputs:
            raise PromiseBroken(f"`{constant.name}` is no initializer that only nodes use.")
        (made,) = self.insert(
            self._in_main(constant.outputs[0]),
            op,
            inputs,
            attrs,
            name=constant.name,
            dtype=constant.dtype,
            shape=list(constant.shape),
            domain=domain,
        )
        return made

    def skip(self, node: gs.Node | str, why: str) -> None:
        """Record that an edit was declined; once for each node and reason."""
        label = node if isinstance(node, str) else node_label(node)
        self.skips.setdefault((label, why), Skip(label, why))

    def decline(self, why: str) -> None:
        """Record why the pass does nothing at all."""
        label = str(self.main.name)
        self.skips[label, why] = Skip(label, why, decides=True)

    def note(self, label: str, what: str, fidelity: Fidelity = Fidelity.EXACT) -> None:
        """Record a change of something other than a node (an initializer, a function)."""
        self._log(label, what, fidelity)

    def fresh_name(self, wish: str) -> str:
        """A tensor name that no graph of the model uses, `wish` itself if it is free."""
        if self._names is None:
            self._names = {
                tensor.name
                for graph in walk_graphs(self.main)
                for tensor in _tensors_of(graph)
                if tensor.name
            }
        name, number = wish, self._numbers.get(wish, 0)
        while name in self._names or not name:
            number += 1
            name = f"{wish}_{number}"
        self._numbers[wish] = number  # where the next one with this wish begins to look
        self._names.add(name)
        return name

    def result(self) -> PassResult:
        """Put node lists in order and return what was done; call it once, at the end."""
        if self.changes:
            self._make_scalars()
            self._join_clips()
        self._release(self._released)
        if self._removed or self._inserted:
            for graph in list(walk_graphs(self.main)):
                graph.nodes = list(self._settled(graph.nodes))
        if self.changes:
            for graph in walk_graphs(self.main):
                sort_topologically(graph)
        fidelity = self.fidelity if self.changes else None
        return PassResult(tuple(self.changes), tuple(self.skips.values()), fidelity)

    # ----------------------------------------------------------------- inside

    def _make_scalars(self) -> None:
        """Write scalars where edits put vectors of one element, which ran only while computed."""
        for node in [node for node in self._graph_of if node not in self._removed]:
            for index in vectors_for_scalars(node):
                vector = node.inputs[index]
                name, array = f"{vector.name}_scalar", const_array(vector)
                if array is None:
                    (scalar,) = self.insert(
                        *(node, "Squeeze", [vector]), name=name, dtype=vector.dtype, shape=[]
                    )
                elif array.size == 1:
                    scalar = self.constant(array.reshape(()), name)
                else:
                    continue
                self.set_input(node, index, scalar)

    def _join_clips(self) -> None:
        """Let a Clip do the work of the Relu before it where a session does not load the two."""
        for relu in [node for node in self._graph_of if node not in self._removed]:
            found = clip_of_relu(relu)
            if found is None or self.is_output(relu.outputs[0]):
                continue
            clip, low = found
            if self._graph_of[clip] is not self._graph_of[relu]:
                continue
            self.set_input(clip, 1, self.constant(low, clip.inputs[1].name))
            self.set_input(clip, 0, relu.inputs[0])
            self.note(node_label(clip), f"does the work of the Relu `{node_label(relu)}`")

    def _register(self, graph: gs.Graph) -> None:
        for node in graph.nodes:
            self._graph_of[node] = graph
            for body in subgraphs_of(node):
                self._parent[body] = node
        for tensor in graph.outputs:
            self._outputs[tensor] = self._outputs.get(tensor, 0) + 1

    def _register_bodies(self, node: Node) -> None:
        for body in subgraphs_of(node):
            self._parent[body] = node
            for graph in walk_graphs(body):
                if graph.nodes and graph.nodes[0] in self._graph_of:
                    continue
                self._register(graph)

    def _in_main(self, node: Node) -> Node:
        """The node of the main graph that is `node`, or in whose bodies it lies."""
        while (parent := self._parent[self._graph_of[node]]) is not None:
            node = parent
        return node

    def _log(self, label: str, what: str, fidelity: Fidelity) -> None:
        self.changes.append(Change(label, what, self._site))
        self.fidelity = max(self.fidelity, fidelity)

    def _touch(self, node: gs.Node) -> None:
        if node not in self._queued and node not in self._removed:
            self._queue.append(node)
            self._queued.add(node)

    def _touch_users(self, node: Node) -> None:
        for tensor in node.outputs:
            for user in tensor.outputs:
                self._touch(user)

    def _can_take_name(self, old: gs.Tensor, new: gs.Tensor) -> bool:
        if isinstance(new, gs.Constant) or len(new.inputs) != 1 or self.is_output(new):
            return False
        if self._outputs[old] != 1:
            return False
        return self._graph_of[new.inputs[0]] is self._graph_of[old.inputs[0]]

    def _take_name(self, old: gs.Tensor, new: gs.Tensor) -> None:
        graph = self._graph_of[old.inputs[0]]
        graph.outputs = [new if tensor is old else tensor for tensor in graph.outputs]
        self._outputs[new] = self._outputs.pop(old)
        old.name, new.name = new.name, old.name
        old.info, new.info = getattr(new, "info", None), getattr(old, "info", None)

    def _as_constant_node(self, node: Node, new: gs.Tensor, what: str, fidelity: Fidelity) -> bool:
        if not isinstance(new, gs.Constant) or node.op == "Constant" or len(node.outputs) != 1:
            return False
        value = Constant("", new._values)
        self.update(node, what, op="Constant", inputs=[], attrs={"value": value}, fidelity=fidelity)
        return True

    def _hand_over(self, node: Node, old: gs.Tensor, new: gs.Tensor) -> None:
        """Let users of `old`, an output of `node`, use `new`; an Identity bridges outputs."""
        if self.is_output(old) and not self._can_take_name(old, new):
            node.outputs.remove(old)
            bridge = Node("Identity", inputs=[new], outputs=[old])
            self._graph_of[bridge] = self._graph_of[node]
            self._inserted.setdefault(node, []).append(bridge)
            self._touch(bridge)
            return
        self._redirect(old, new)
        if self.is_output(old):
            self._take_name(old, new)

    def _redirect(self, old: gs.Tensor, new: gs.Tensor) -> None:
        is_inner = isinstance(new, Variable) and not self.is_output(new) and self._is_standard(new)
        if is_inner and not confirms(new):
            new.info = None  # a declared shape that may be wrong gets no new readers
        users = list(old.outputs)
        redirect_inputs(users, old, new)
        for user in users:
            self._touch(user)

    def _is_standard(self, tensor: gs.Tensor) -> bool:
        """Whether a standard operator computes `tensor`, so that its type needs no declaration."""
        return len(tensor.inputs) == 1 and bool(tensor.inputs[0].is_onnx)

    def _unique_names(
        self, nodes: Sequence[Node], results: Sequence[gs.Tensor], body: gs.Graph
    ) -> None:
        """Rename tensors of `nodes`, moved out of `body`, whose names are taken already.

        `results` are what `body` returned; constants among them move out as well.
        """
        self.fresh_name("_")  # fills the set of names
        holders: dict[str, set[int]] = {}
        for other in walk_graphs(self.main):
            for tensor in _tensors_of(other):
                holders.setdefault(tensor.name, set()).add(id(tensor))
        moved = [tensor for node in nodes for tensor in node.outputs]
        read = (*results, *(tensor for node in nodes for tensor in node.inputs))
        moved += [tensor for tensor in read if getattr(tensor, "home", None) is body]
        for tensor in moved:
            if tensor.name and holders.get(tensor.name, set()) - {id(tensor)}:
                tensor.name = self.fresh_name(tensor.name)

    def _kill(self, node: Node) -> None:
        """Remove `node`, and every node that only fed it."""
        stack = [node]
        while stack:
            dying = stack.pop()
            if dying in self._removed:
                continue
            self._removed.add(dying)
            freed = list(dying.inputs)
            dying.inputs.clear()
            for body in subgraphs_of(dying):
                freed += self._dissolve(body)
            dying.outputs.clear()
            stack += self._orphans(freed)

    def _dissolve(self, body: gs.Graph) -> list[gs.Tensor]:
        """Unhook everything inside a body that goes away; returns the tensors it used."""
        freed: list[gs.Tensor] = []
        for graph in list(walk_graphs(body)):
            for tensor in graph.outputs:
                self._outputs[tensor] = self._outputs.get(tensor, 1) - 1
                freed.append(tensor)
            for inner in graph.nodes:
                self._removed.add(inner)
                freed += inner.inputs
                inner.inputs.clear()
                inner.outputs.clear()
        return freed

    def _drop_bodies(self, bodies: Iterable[gs.Graph]) -> None:
        freed = [tensor for body in bodies for tensor in self._dissolve(body)]
        self._release(freed)

    def _release(self, tensors: Iterable[gs.Tensor]) -> None:
        for orphan in self._orphans(tensors):
            self._kill(orphan)

    def _orphans(self, tensors: Iterable[gs.Tensor]) -> list[Node]:
        """Producers of `tensors` that nothing uses any more; wakes the last user of others."""
        found = []
        for tensor in tensors:
            uses = self.uses(tensor)
            if uses == 1 and tensor.outputs:
                self._touch(tensor.outputs[0])
            if uses or not tensor.inputs:
                continue
            producer = tensor.inputs[0]
            if producer not in self._removed and not any(map(self.uses, producer.outputs)):
                found.append(producer)
        return found

    def _settled(self, nodes: Iterable[Node]) -> Iterator[Node]:
        """`nodes` with insertions in front of their anchors, and without removed nodes."""
        for node in nodes:
            if node in self._inserted:
                yield from self._settled(self._inserted.pop(node))
            if node not in self._removed:
                yield node


def _holds(attrs: dict[str, Any], body: gs.Graph) -> bool:
    return any(value is body for value in attrs.values())


def _tensors_of(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from graph.inputs
    yield from graph.outputs
    yield from getattr(graph, "unused", ())
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
