"""A model with exits as one that every sample goes through to the end, past all heads.

What a model with exits computes depends on the sample, and so do its gradients. Its twin has no
exits: it returns what the whole network answers, and beside it the scores of every head. Stored
tensors have the same names in both, so what the twin learns is written back by name.

    model    y = If (leave) { scores of the head } else { the rest of the network }
    twin     y = the rest of the network,   y_exit1 = scores of the head

Owns: which Ifs of a graph are exits, and the twins of models with exits and of models that are to
get some. Not here: training them (see `training`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.exits.operators import Confidence, Head, NodeBuilder, ScoreForm, level
from onnxslim.exits.points import classes_of
from onnxslim.graph.ir import Node, Variable, ancestors
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model

_MEASURING: Final = frozenset(
    {
        *("Cast", "Identity", "Log", "LogSoftmax", "Mul", "ReduceMax", "ReduceSum", "Softmax"),
        *("Split", "Squeeze", "Sub", "TopK"),
    }
)
"""Operators between the logits of a head and its confidence."""

_PLACING: Final = frozenset({"Cast", "Identity", "NonZero", "Not", "Reshape", "Squeeze"})
"""Operators between a comparison and the numbers of the samples that stay."""


@dataclass(frozen=True, eq=False)
class InsertedExit:
    """An exit that a graph has.

    Attributes:
        node: the If.
        home: the graph that holds it.
        decisions: the comparisons with the threshold: that of the If, and that which splits a
            batch, where one does.
        kind: how confidence is measured.
        classes: number of entries of the scores.
    """

    node: Node
    home: gs.Graph
    decisions: tuple[Node, ...]
    kind: Confidence
    classes: int

    @property
    def threshold(self) -> float:
        """The least confidence, from 0 to 1, of a sample that leaves."""
        found = const_array(self.decisions[0].inputs[1])
        assert found is not None
        value = float(np.nextafter(found, np.array(np.inf, found.dtype)).reshape(-1)[0])
        return 1 + value / log(self.classes) if self.kind is Confidence.ENTROPY else value

    def set_threshold(self, rw: Rewriter, threshold: float) -> None:
        """Let samples leave from another confidence on; the caller reports the change."""
        goal = level(threshold, self.kind, self.classes)
        for decision in self.decisions:
            old = decision.inputs[1]
            stored = const_array(old)
            assert stored is not None
            values = np.full_like(stored, goal)
            end = np.array(np.inf, stored.dtype)
            if values.reshape(-1)[0] < np.float32(goal):  # float16 may have rounded it down
                values = np.nextafter(values, end)
            below = np.nextafter(values, -end)  # as the comparison is Greater
            rw.set_input(decision, 1, rw.constant(below, old.name))


@dataclass(frozen=True)
class ExitTwin:
    """A model in which no sample leaves.

    Attributes:
        model: returns the outputs of the network, then the scores of each head.
        output: name of the scores of the whole network.
        heads: names of the scores of each head, in the order in which samples come to them.
        weights: of each head, names of its stored tensors; () where a graph had the heads.
    """

    model: Model
    output: str
    heads: tuple[str, ...]
    weights: tuple[Mapping[str, str], ...] = field(default=())

    def head_nodes(self) -> set[Node]:
        """The nodes that only heads need."""
        outputs = self.model.graph.outputs
        own = [tensor for tensor in outputs if tensor.name in self.heads]
        others = [tensor for tensor in outputs if tensor.name not in self.heads]
        return ancestors(own) - ancestors(others)

    def of_heads(self) -> Model:
        """A copy that returns the scores of the heads alone, for training of these alone."""
        return self._returning(heads=True)

    def of_network(self) -> Model:
        """A copy without heads."""
        return self._returning(heads=False)

    def _returning(self, *, heads: bool) -> Model:
        copy = self.model.clone()
        outputs = [t for t in copy.graph.outputs if (t.name in self.heads) is heads]
        used = ancestors(outputs)
        copy.graph.outputs = outputs
        copy.graph.nodes = [node for node in copy.graph.nodes if node in used]
        return copy

    def head(self, number: int, values: Mapping[str, np.ndarray], head: Head) -> Head:
        """A head with new values of its stored tensors, where there are any."""
        names = self.weights[number]
        found = {part: values[name] for part, name in names.items() if name in values}
        hidden = head.hidden
        if hidden is not None:
            units = found.get("hidden_weight", hidden[0]), found.get("hidden_bias", hidden[1])
            head = replace(head, hidden=units)
        return replace(
            head, weight=found.get("weight", head.weight), bias=found.get("bias", head.bias)
        )


# ---------------------------------------------------------------------------- of a model to be


def twin_with(model: Model, output: str, heads: Sequence[Head], form: ScoreForm) -> ExitTwin:
    """The twin of `model`, whose class scores are `output`, with heads that it is to get."""
    copy = model.clone()
    graph, rw = copy.graph, Rewriter(copy.graph)
    scores = next(tensor for tensor in graph.outputs if tensor.name == output)
    tensors = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
    names, weights = [], []
    for number, head in enumerate(heads, 1):
        builder = NodeBuilder(rw)
        point = tensors[head.pooling.point.tensor]
        logits = builder.logits(point, head, f"exit{number}_logits")
        weights.append(_stored_in(builder.nodes))
        made = builder.scores(logits, form, scores, f"{output}_exit{number}")
        graph.nodes.extend(builder.nodes)
        graph.outputs.append(made)
        names.append(str(made.name))
    copy.has_shapes = False
    return ExitTwin(copy, output, tuple(names), tuple(weights))


def _stored_in(nodes: Sequence[Node]) -> dict[str, str]:
    """Names of the stored tensors of a head, by their part in it; its last layer comes last."""
    layers = [node for node in nodes if node.op == "Gemm"]
    parts = ("weight", "bias", "hidden_weight", "hidden_bias")
    names = [str(tensor.name) for node in reversed(layers) for tensor in node.inputs[1:]]
    return dict(zip(parts, names, strict=False))


# ---------------------------------------------------------------------------- of a model that is


def inserted_exits(graph: gs.Graph) -> list[InsertedExit]:
    """The exits of a graph, in the order in which samples come to them."""
    return list(_exits_of(graph))


def _exits_of(graph: gs.Graph) -> Iterator[InsertedExit]:
    for node in graph.nodes:
        found = _exit_of(node, graph) if node.op == "If" and node.is_onnx else None
        if found is not None:
            yield found
            yield from _exits_of(node.attrs["else_branch"])


def _exit_of(node: Node, home: gs.Graph) -> InsertedExit | None:
    """The exit that an If is; None where it is another If."""
    decision = _maker(node.inputs[0])
    if decision is None or not _is_decision(decision):
        return None
    least = _maker(decision.inputs[0])
    is_reduced = least is not None and least.op == "ReduceMin"
    confidence = least.inputs[0] if is_reduced else decision.inputs[0]  # type: ignore[union-attr]
    kind, classes = _measure(confidence), classes_of(node.outputs[0])
    rest: list[Node] = node.attrs["else_branch"].nodes
    splitting = [user for user in confidence.outputs if user in rest]
    if kind is None or classes is None or not all(map(_is_decision, splitting)):
        return None
    return InsertedExit(node, home, (decision, *splitting), kind, classes)


def _is_decision(node: Node) -> bool:
    threshold = const_array(node.inputs[1]) if node.op == "Greater" else None
    return threshold is not None and threshold.size == 1


def _measure(confidence: gs.Tensor) -> Confidence | None:
    """How a confidence is measured; None where it is none."""
    seen: set[str] = set()
    stack = [confidence]
    while stack:
        maker = _maker(stack.pop())
        if maker is not None and maker.op in _MEASURING:
            seen.add(maker.op)
            stack += maker.inputs
    if "TopK" in seen:
        return Confidence.MARGIN
    if seen & {"LogSoftmax", "Log"}:
        return Confidence.ENTROPY
    return Confidence.MAX_PROBABILITY if {"Softmax", "ReduceMax"} <= seen else None


def _maker(tensor: gs.Tensor) -> Node | None:
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def twin_of(model: Model) -> ExitTwin | None:
    """The twin of a model that has exits; None where it has none.

    Raises:
        NotApplicable: the exits are written in another way than `inject-exits` does.
    """
    copy = model.clone()
    graph = copy.graph
    exits = inserted_exits(graph)
    if not exits:
        return None
    output = exits[0].node.outputs[0]
    output_name = str(output.name)
    rw = Rewriter(graph)
    told = {id(tensor) for item in exits for tensor in item.node.outputs[1:]}
    graph.outputs = [tensor for tensor in graph.outputs if id(tensor) not in told]
    names = [rw.fresh_name(f"{output_name}_exit{number}") for number in range(1, len(exits) + 1)]
    heads = [Variable(name, output.dtype, [None, *output.shape[1:]]) for name in names]
    apart = [_with_head_apart(*pair) for pair in zip(exits, heads, strict=True)]
    graph.outputs = [*graph.outputs, *heads]
    rw = Rewriter(graph)
    for item, head in zip(exits, apart, strict=True):  # outer before inner
        rw.inline(head, head.attrs["then_branch"], [], "the head answers beside the network")
        for node in list(item.node.attrs["else_branch"].nodes):
            _without_split(rw, node, set(item.decisions))
        rw.inline(item.node, item.node.attrs["else_branch"], [], "every sample stays")
    if any(rw.is_alive(decision) for item in exits for decision in item.decisions):
        raise NotApplicable(
            f"the exits before `{output_name}` are not written as inject-exits writes them: train "
            "the model before other tools change it"
        )
    rw.result()
    copy.has_shapes = False
    return ExitTwin(copy, output_name, tuple(names))


def _with_head_apart(item: InsertedExit, scores: Variable) -> Node:
    """Move the branch of a head to an If of its own, which computes `scores`."""
    branch = item.node.attrs.pop("then_branch")
    results = [scores, *(Variable("") for _ in branch.outputs[1:])]
    node = Node("If", None, {"then_branch": branch}, [], results)
    item.home.nodes.insert(item.home.nodes.index(item.node), node)
    return node


def _without_split(rw: Rewriter, node: Node, decisions: set[Node]) -> None:
    """Let `node`, which takes the samples that stay or puts their answers back, take them all."""
    if node.op not in ("Gather", "ScatterND"):
        return
    maker = _maker(node.inputs[1])
    while maker is not None and maker.op in _PLACING:
        maker = _maker(maker.inputs[0])
    if maker in decisions:
        whole = node.inputs[0 if node.op == "Gather" else 2]
        rw.substitute(node, whole, "every sample stays")
