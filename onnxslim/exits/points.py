"""Points at which a network can be left: tensors through which every path to an output passes.

These are the dominators of the output in the graph of data flow. What only asks for the shape of a
tensor is no path: a Reshape far down that reads the batch size of the input hides no point.

What may change here: which points are worth a look, and what counts as class scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import networkx as nx
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.graph.counts import node_macs
from onnxslim.graph.ir import Constant, Node, ancestors, needs, node_label

Dim = int | str | None

_SHAPE_ONLY: Final = frozenset({"Shape", "Size"})
_CONTROL: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_WORK: Final = frozenset({"Attention", "Einsum", "GRU", "LSTM", "RNN"})  # beside matrix products


@dataclass(frozen=True)
class ExitPoint:
    """A tensor at which a network can be left.

    Attributes:
        tensor: its name, the same in copies of the graph.
        shape: as inferred.
        is_map: whether its axes after the second are spatial (N, C, ...); else its last axis holds
            the features: (N, F) or (N, T, F).
        share: of the multiply-accumulates that come before it; None where they are not known.
    """

    tensor: str
    shape: tuple[Dim, ...]
    is_map: bool
    share: float | None

    @property
    def channels(self) -> int:
        """Features at each position."""
        size = self.shape[1 if self.is_map else -1]
        assert isinstance(size, int)
        return size


def score_outputs(graph: gs.Graph) -> list[gs.Tensor]:
    """The outputs that have the form of class scores, those that others are made of first."""
    fitting = [tensor for tensor in graph.outputs if classes_of(tensor) is not None]
    return sorted(fitting, key=lambda tensor: len(ancestors([tensor])))


def classes_of(tensor: gs.Tensor) -> int | None:
    """How many classes a tensor of the form (N, classes), or with further axes of 1, has."""
    shape = tensor.shape
    if not is_float(tensor.dtype) or not tensor.inputs or shape is None or len(shape) < 2:
        return None
    if not all(isinstance(size, int) for size in shape[1:]):
        return None
    classes = prod(shape[1:])
    return classes if classes > 1 and max(shape[1:]) == classes else None


def control_flow(output: gs.Tensor) -> Node | None:
    """A node on the way to `output` that itself decides what runs."""
    return next((node for node in ancestors([output]) if node.op in _CONTROL), None)


def single_path(graph: gs.Graph, output: gs.Tensor) -> list[gs.Tensor]:
    """The tensors through which all data on the way to `output` pass, `output` last."""
    way = nx.DiGraph()
    source = object()
    way.add_edges_from((source, tensor) for tensor in graph.inputs)
    for node in ancestors([output]):
        if node.op in _SHAPE_ONLY:
            continue
        way.add_edges_from((tensor, node) for tensor in needs(node) if tensor.name)
        way.add_edges_from((node, tensor) for tensor in node.outputs if tensor.name)
    if output not in way or not nx.has_path(way, source, output):
        return []
    above = nx.immediate_dominators(way, source)
    found: list[gs.Tensor] = []
    current: object = output
    while current is not None and current is not source:
        if isinstance(current, gs.Tensor):
            found.append(current)
        current = above.get(current)
    given = set(graph.inputs)
    return [tensor for tensor in reversed(found) if tensor not in given]


def deep_nodes(graph: gs.Graph, output: gs.Tensor, tensor: gs.Tensor) -> list[Node]:
    """The nodes that need not run when the network is left at `tensor`, in the graph's order.

    What other outputs need runs in any case, unless they are made of `output` alone.
    """
    others = [item for item in graph.outputs if item is not output]
    needed = ancestors([tensor]) | ancestors(others, stop={output})
    deep = ancestors([output]) - needed
    return [node for node in graph.nodes if node in deep]


def forcing_outputs(graph: gs.Graph, output: gs.Tensor, tensor: gs.Tensor) -> list[str]:
    """Other outputs that need something behind `tensor` which `output` needs as well."""
    behind = ancestors([output]) - ancestors([tensor])
    return [
        item.name
        for item in graph.outputs
        if item is not output and not behind.isdisjoint(ancestors([item], stop={output}))
    ]


def candidate_points(graph: gs.Graph, output: gs.Tensor) -> list[ExitPoint]:
    """The points worth a look, in order: one between each two pieces of work.

    Between two pieces of work there may be several tensors (before and behind an activation, a
    pooling, a Flatten). The last of those with most axes is taken: onnxruntime fuses what is
    behind a piece of work into it, and a grid can be laid over a map only.
    """
    path = single_path(graph, output)
    whole = _macs(ancestors([output]))
    found = []
    for run in _runs_between_work(path):
        fitting = [tensor for tensor in run if objection(tensor) is None]
        if fitting and _works(deep_nodes(graph, output, fitting[-1])):
            most = max(len(tensor.shape) for tensor in fitting)
            best = [tensor for tensor in fitting if len(tensor.shape) == most][-1]
            found.append(point_at(best, whole))
    return found


def point_at(tensor: gs.Tensor, whole_macs: int | None) -> ExitPoint:
    """The point at `tensor`, to which there is no `objection`."""
    before = _macs(ancestors([tensor]))
    known = whole_macs and before is not None
    share = before / whole_macs if known else None  # type: ignore[operator]
    return ExitPoint(tensor.name, tuple(tensor.shape), _is_map(tensor), share)


def point_named(graph: gs.Graph, output: gs.Tensor, name: str) -> ExitPoint | str:
    """The point at the tensor `name`, or why the network cannot be left there."""
    path = single_path(graph, output)
    tensor = next((item for item in path[:-1] if item.name == name), None)
    if tensor is None:
        made = any(item.name == name for node in graph.nodes for item in node.outputs)
        return (
            f"there are ways from the inputs to `{output.name}` that do not pass through it"
            if made
            else "the graph has no such tensor"
        )
    why = objection(tensor)
    if why is None and not _works(deep_nodes(graph, output, tensor)):
        forced = forcing_outputs(graph, output, tensor)
        named = ", ".join(f"`{item}`" for item in forced)
        why = f"what is behind it is needed for {named}" if forced else "no work is behind it"
    return point_at(tensor, _macs(ancestors([output]))) if why is None else why


def objection(tensor: gs.Tensor) -> str | None:
    """Why no head can read `tensor`; None when one can."""
    shape = tensor.shape
    if not is_float(tensor.dtype):
        return "it holds no floating-point numbers"
    if shape is None or len(shape) not in (2, 3, 4, 5):
        return "its rank is not known, or not 2 to 5"
    if not isinstance(shape[1 if _is_map(tensor) else -1], int):
        return "the number of its features is not known"
    return None


# ---------------------------------------------------------------------------- inside


def _is_map(tensor: gs.Tensor) -> bool:
    """Whether the second axis holds channels: always with four axes, with three behind a Conv."""
    if len(tensor.shape) != 3:
        return len(tensor.shape) > 3
    seen: set[Node] = set()
    layer = list(tensor.inputs)
    while layer:  # the nearest piece of work
        seen.update(layer)
        for node in layer:
            if _is_work(node):
                return node.op in ("Conv", "ConvTranspose")
        layer = [n for node in layer for t in needs(node) for n in t.inputs if n not in seen]
    return False


def _runs_between_work(path: Sequence[gs.Tensor]) -> Iterator[list[gs.Tensor]]:
    """Neighbours on the path with no work between them; not what comes before all work."""
    run: list[gs.Tensor] = []
    seen: set[Node] = set()
    worked = False
    for tensor in path:
        nodes = ancestors([tensor]) - seen
        seen |= nodes
        if _works(nodes):
            if run and worked:
                yield run
            run, worked = [], True
        run.append(tensor)


def _works(nodes: Iterable[Node]) -> bool:
    return any(map(_is_work, nodes))


def _is_work(node: Node) -> bool:
    if node.op in _WORK:
        return True
    return node_macs(node) != 0 and not all(isinstance(t, Constant) for t in node.inputs)


def _macs(nodes: Iterable[Node]) -> int | None:
    total = 0
    for node in nodes:
        macs = node_macs(node)
        if macs is None:
            return None
        total += macs
    return total


def describe_control(node: Node) -> str:
    """The sentence that declines a model for `node`."""
    return (
        f"what its outputs need is decided at run time by the {node.op} `{node_label(node)}`; an "
        "exit can only be put into a graph of which every run computes the same nodes"
    )


__all__ = [
    "Dim",
    "ExitPoint",
    "candidate_points",
    "classes_of",
    "control_flow",
    "deep_nodes",
    "describe_control",
    "forcing_outputs",
    "point_at",
    "point_named",
    "score_outputs",
    "single_path",
]
