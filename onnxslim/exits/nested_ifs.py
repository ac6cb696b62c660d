"""Exits in a graph: nested Ifs whose else-branches hold the remaining network.

    all:    leave = Min(confidence) >= threshold      every sample is confident
            y = If (leave) { scores of the head } else { remaining network }

    split:  y = If (leave) { scores of the head } else {
                rows = samples below the threshold
                ScatterND(scores of the head, rows, remaining network on Gather(cut, rows)) }

With several exits, the remaining network holds the next If. A branch reads tensors of the graphs
around it, and weights stay initializers of the main graph, so nothing is stored twice, and passes
that rewrite bodies of If keep working.

Owns: how nodes move into branches, and how a batch is split. Not here: what an exit computes (see
`operators`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.exits.operators import Confidence, Head, NodeBuilder, ScoreForm, level
from onnxslim.exits.points import classes_of, deep_nodes
from onnxslim.graph.counts import with_bodies
from onnxslim.graph.ir import (
    Constant,
    Graph,
    Node,
    Variable,
    ancestors,
    redirect_inputs,
)
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.records import Fidelity

_FLOAT: Final[np.dtype[Any]] = np.dtype(np.float32)
_INT: Final[np.dtype[Any]] = np.dtype(np.int64)
_BOOL: Final[np.dtype[Any]] = np.dtype(np.bool_)


class BatchMode(enum.StrEnum):
    """A batch in which only some samples are confident: ALL of it continues, or it is SPLIT."""

    ALL = "all"
    SPLIT = "split"


@dataclass(frozen=True)
class Exit:
    """An exit: a head, and the confidence at which samples leave.

    Attributes:
        threshold: the least confidence of a sample that leaves.
    """

    head: Head
    threshold: float

    @property
    def tensor(self) -> str:
        """Name of the tensor at which samples leave."""
        return self.head.pooling.point.tensor


@dataclass(frozen=True)
class ExitOptions:
    """How exits are written.

    Attributes:
        batch: what happens to a batch in which only some samples are confident.
        report: whether a new output gives the number of the exit that each sample took.
    """

    score_form: ScoreForm
    confidence: Confidence = Confidence.MAX_PROBABILITY
    batch: BatchMode = BatchMode.ALL
    report: bool = False


def with_exits(model: Model, output: str, exits: Sequence[Exit], options: ExitOptions) -> Model:
    """A copy of `model` with exits; see `insert_exits`."""
    copy = model.clone()
    rw = Rewriter(copy.graph)
    insert_exits(rw, output, exits, options)
    rw.note(output, "exits", Fidelity.LOSSY)
    rw.result()
    copy.has_shapes = False
    return copy


def insert_exits(
    rw: Rewriter, output: str, exits: Sequence[Exit], options: ExitOptions
) -> str | None:
    """Insert exits, given in the order in which data reach them; the caller logs the change.

    `output` is the name of the class scores.

    Returns:
        The name of the new output with the exit numbers; None without `options.report`.
    """
    _drop_unused(rw)
    return _ExitInsertion(rw, _output_named(rw.main, output), options).run(exits)


def append_exits(
    rw: Rewriter, output: str, exits: Sequence[Exit], score_form: ScoreForm
) -> list[str]:
    """Append the scores of every exit as outputs; no node is skipped. Returns their names."""
    graph, made = rw.main, []
    scores = _output_named(graph, output)
    for number, exit_ in enumerate(exits, 1):
        builder = NodeBuilder(rw)
        logits = builder.logits(
            _tensor_named(graph, exit_.tensor), exit_.head, f"exit{number}_logits"
        )
        result = builder.scores(logits, score_form, scores, f"{output}_exit{number}")
        result.shape = list(scores.shape)
        graph.nodes.extend(builder.nodes)
        graph.outputs.append(result)
        made.append(str(result.name))
    return made


@dataclass
class _BranchBody:
    """The body of a branch under construction."""

    nodes: list[Node]
    results: list[gs.Tensor]


class _ExitInsertion:
    """Moves the nodes behind each exit into an else-branch, from the last exit to the first.

    The body behind the last exit is the end of the network. Wrapped into the If of that exit, and
    with the nodes between two exits before it, it becomes the body behind the exit before.
    """

    def __init__(self, rw: Rewriter, output: gs.Tensor, options: ExitOptions) -> None:
        self.rw, self.graph, self.output, self.options = rw, rw.main, output, options
        classes = classes_of(output)
        assert classes is not None
        self.classes = classes
        self.is_single = output.shape[0] == 1

    def run(self, exits: Sequence[Exit]) -> str | None:
        graph, output = self.graph, self.output
        points = [_tensor_named(graph, item.tensor) for item in exits]
        behind = [deep_nodes(graph, output, point) for point in points]
        last = self._rename_output()
        body = _BranchBody(list(behind[-1]), [last])
        if self.options.report:
            self._report(body, last, len(exits) + 1)
        for index in reversed(range(len(exits))):
            results = self._results(is_outermost=index == 0)
            inner = self._branch(points[index], exits[index], index + 1, body, results)
            if index:
                moved = set(behind[index])
                between = [node for node in behind[index - 1] if node not in moved]
                body = _BranchBody([*between, *inner], results)
        moved = set(behind[0])
        graph.nodes = [node for node in graph.nodes if node not in moved] + inner
        if not self.options.report:
            return None
        graph.outputs.append(results[1])
        return str(results[1].name)

    # ----------------------------------------------------------------- one exit

    def _branch(
        self,
        point: gs.Tensor,
        exit_: Exit,
        number: int,
        rest: _BranchBody,
        results: Sequence[gs.Tensor],
    ) -> list[Node]:
        """The nodes of an exit: head, decision, and the If that computes `results`."""
        outer = self._builder()
        logits = outer.logits(point, exit_.head, f"exit{number}_logits")
        confidence = outer.confidence(logits, self.options.confidence, self.classes)
        goal = level(exit_.threshold, self.options.confidence, self.classes)
        least = confidence
        if not self.is_single:
            least = outer.reduced("ReduceMin", confidence, None, "exit_least")
        leave = outer.above(least, goal, "exit_leave")
        leaving = self._leaving(logits, number)
        if self.options.batch is BatchMode.SPLIT and not self.is_single:
            rest = self._split(rest, point, exit_, logits, confidence, goal, number)
        attrs = {
            "then_branch": self._graph(leaving, f"exit{number}"),
            "else_branch": self._graph(rest, f"behind_exit{number}"),
        }
        outer.nodes.append(Node("If", None, attrs, [leave], list(results)))
        return outer.nodes

    def _leaving(self, logits: gs.Tensor, number: int) -> _BranchBody:
        """The then-branch of an exit: the scores of its head."""
        builder = self._builder()
        scores = builder.scores(logits, self.options.score_form, self.output)
        branch = _BranchBody(builder.nodes, [scores])
        if self.options.report:
            self._report(branch, logits, number)
        return branch

    def _report(self, branch: _BranchBody, like: gs.Tensor, number: int) -> None:
        """Add the number of an exit as a further result, once for each sample of `like`."""
        builder = self._builder()
        sizes = builder.add("Shape", [like], "exit_sizes", dtype=_INT)
        rows = builder.add(
            "Slice", [sizes, builder.ints(0), builder.ints(1)], "exit_rows", dtype=_INT
        )
        value = Constant("", np.array([number], np.int64))
        told = builder.add(
            "ConstantOfShape", [rows], "exit_number", dtype=_INT, shape=[None], value=value
        )
        branch.nodes += builder.nodes
        branch.results.append(told)

    def _split(
        self,
        rest: _BranchBody,
        point: gs.Tensor,
        exit_: Exit,
        logits: gs.Tensor,
        confidence: gs.Tensor,
        goal: float,
        number: int,
    ) -> _BranchBody:
        """The else-branch for SPLIT: `rest` on the samples below the threshold, joined with all."""
        before = self._builder()
        sure = before.above(confidence, goal, "exit_sure")
        unsure = before.add("Not", [sure], "exit_unsure", dtype=_BOOL)
        places = before.add("NonZero", [unsure], "exit_places", dtype=_INT)  # (1, K)
        rows = before.add("Reshape", [places, before.ints(-1)], "exit_rows", dtype=_INT)
        # each tensor that crosses into the body and has a row for each sample is cut to those rows
        inside = set(with_bodies(rest.nodes))
        for tensor in _captured(rest.nodes, inside, self._per_sample(point, exit_)):
            chosen = before.add(
                "Gather", [tensor, rows], f"{tensor.name}_unsure", dtype=tensor.dtype, axis=0
            )
            chosen.shape = [None, *tensor.shape[1:]] if tensor.shape else None
            redirect_inputs(with_bodies(rest.nodes), tensor, chosen)
        # the scores of the head for all samples, overwritten at those rows by the network's own
        leaving = self._leaving(logits, number)
        after = self._builder()
        index = after.add("Reshape", [places, after.ints(-1, 1)], "exit_index", dtype=_INT)
        results = [
            after.add(
                "ScatterND",
                [base, index, found],
                f"{base.name}_joined",
                dtype=base.dtype,
                shape=base.shape,
            )
            for base, found in zip(leaving.results, rest.results, strict=True)
        ]
        return _BranchBody([*before.nodes, *rest.nodes, *leaving.nodes, *after.nodes], results)

    def _per_sample(self, point: gs.Tensor, exit_: Exit) -> set[gs.Tensor]:
        """The point, the mask of padding, and what is computed from them: a row for each sample.

        `splits_well` tries whether the network agrees.
        """
        mask = exit_.head.pooling.point.mask
        given = [t for t in self.graph.inputs if mask is not None and t.name == mask.name]
        return {tensor for start in (point, *given) for tensor in (start, *_followers(start))}

    # ----------------------------------------------------------------- around

    def _results(self, *, is_outermost: bool) -> list[gs.Tensor]:
        """The results of an If: the output itself, or a tensor of a branch like it."""
        output = self.output
        if is_outermost:
            made: list[gs.Tensor] = [output]
        else:
            made = [self._like_output(f"{output.name}_behind")]
        if self.options.report:
            wish = f"{output.name}_exit" if is_outermost else "exit_taken"
            made.append(Variable(self.rw.fresh_name(wish), _INT, [output.shape[0]]))
        return made

    def _rename_output(self) -> Variable:
        """Let the network compute a new tensor instead of `output`, which the first If computes."""
        (node,) = self.output.inputs
        index = next(i for i, tensor in enumerate(node.outputs) if tensor is self.output)
        made = self._like_output(f"{self.output.name}_deep")
        node.outputs[index] = made
        return made

    def _like_output(self, wish: str) -> Variable:
        output = self.output
        rows = output.shape[0] if self.is_single else None
        return Variable(self.rw.fresh_name(wish), output.dtype, [rows, *output.shape[1:]])

    def _graph(self, branch: _BranchBody, name: str) -> Graph:
        body = Graph(nodes=branch.nodes, outputs=list(branch.results), name=name)
        body.opset = self.graph.opset
        body.import_domains = self.graph.import_domains
        body.ir_version = self.graph.ir_version
        body.local_functions = self.graph.local_functions
        return body

    def _builder(self) -> NodeBuilder:
        return NodeBuilder(self.rw)


def _captured(nodes: Sequence[Node], inside: set[Node], wanted: set[gs.Tensor]) -> list[gs.Tensor]:
    """The tensors among `wanted` that `nodes` read from outside."""
    found: dict[int, gs.Tensor] = {}
    for node in with_bodies(nodes):
        for tensor in node.inputs:
            is_outside = not tensor.inputs or tensor.inputs[0] not in inside
            if is_outside and tensor in wanted:
                found[id(tensor)] = tensor
    return list(found.values())


def _followers(point: gs.Tensor) -> set[gs.Tensor]:
    """The tensors computed from `point`, not counting those that read only its shape."""
    found: set[gs.Tensor] = set()
    stack = [point]
    while stack:
        for user in stack.pop().outputs:
            if user.op in ("Shape", "Size"):
                continue
            fresh = [tensor for tensor in user.outputs if tensor not in found]
            found.update(fresh)
            stack += fresh
    return found


def _drop_unused(rw: Rewriter) -> None:
    """Remove nodes that no output needs: they might read tensors that move into a branch."""
    used = ancestors(rw.main.outputs)
    for node in reversed(rw.main.nodes):
        if node not in used and rw.is_alive(node):
            rw.remove(node, "no output needs it")


def _output_named(graph: gs.Graph, name: str) -> gs.Tensor:
    return next(tensor for tensor in graph.outputs if tensor.name == name)


def _tensor_named(graph: gs.Graph, name: str) -> gs.Tensor:
    return next(t for node in graph.nodes for t in node.outputs if t.name == name)
