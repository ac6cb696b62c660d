"""Points at which a network can be left: tensors through which every path to an output passes.

These tensors are the dominators of the output in the data flow graph. An operator that reads only
the shape of a tensor makes no path: a late Reshape that reads the batch size of the input hides no
point. Neither does a mask of padding, which every layer of an encoder reads: it says which
positions hold data, and is none itself.

Owns: which points are candidates, and which outputs count as class scores. Not here: what an exit
at a point costs (see `candidates`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import networkx as nx
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.analysis.token_inputs import PaddingMask, padding_mask
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
        tensor: name of the tensor, the same in copies of the graph.
        is_map: whether it is a feature map (N, C, spatial axes...); else it is (N, F) or (N, T, F).
        share: share of the multiply-accumulates before it; None where they are not known.
        mask: the mask of padding that the layers behind it read; None: there is none.
    """

    tensor: str
    shape: tuple[Dim, ...]
    is_map: bool
    share: float | None
    mask: PaddingMask | None = None

    @property
    def is_sequence(self) -> bool:
        """Whether it has features at each position: (N, T, F)."""
        return len(self.shape) == 3 and not self.is_map

    @property
    def channels(self) -> int:
        """Features at each position."""
        size = self.shape[1 if self.is_map else -1]
        assert isinstance(size, int)
        return size


def score_outputs(graph: gs.Graph) -> list[gs.Tensor]:
    """The outputs that have the shape of class scores; those computed from others come later."""
    fitting = [tensor for tensor in graph.outputs if classes_of(tensor) is not None]
    return sorted(fitting, key=lambda tensor: len(ancestors([tensor])))


def classes_of(tensor: gs.Tensor) -> int | None:
    """Number of classes of a tensor (N, classes[, 1, ...]); None where it has another shape."""
    shape = tensor.shape
    if not is_float(tensor.dtype) or not tensor.inputs or shape is None or len(shape) < 2:
        return None
    if not all(isinstance(size, int) for size in shape[1:]):
        return None
    classes = prod(shape[1:])
    return classes if classes > 1 and max(shape[1:]) == classes else None


def control_flow(output: gs.Tensor) -> Node | None:
    """A control flow node on which `output` depends, if any."""
    return next((node for node in ancestors([output]) if node.op in _CONTROL), None)


def single_path(graph: gs.Graph, output: gs.Tensor) -> list[gs.Tensor]:
    """The tensors through which all data for `output` pass, in order, `output` last."""
    mask = padding_mask(graph)
    flow = nx.DiGraph()
    source = object()
    flow.add_node(source)  # there, even where no input is
    flow.add_edges_from(
        (source, tensor) for tensor in graph.inputs if mask is None or tensor.name != mask.name
    )
    for node in ancestors([output]):
        if node.op in _SHAPE_ONLY:
            continue
        flow.add_edges_from((tensor, node) for tensor in needs(node) if tensor.name)
        flow.add_edges_from((node, tensor) for tensor in node.outputs if tensor.name)
    if output not in flow or not nx.has_path(flow, source, output):
        return []
    # the dominators of `output`: follow the immediate ones up to the source
    above = nx.immediate_dominators(flow, source)
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

    Nodes that other outputs need always run, unless these outputs are computed from `output` alone.
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
    """The candidate points, in order: one between each two matrix products or other heavy nodes.

    There may be several tensors between them (before and behind an activation, a pooling, a
    Flatten). The last of those with the most axes is chosen: onnxruntime fuses an activation into
    the product before it, and only a feature map can be pooled over a grid.
    """
    path = single_path(graph, output)
    whole, mask = known_macs(ancestors([output])), padding_mask(graph)
    found = []
    for run in _runs_between_work(path):
        fitting = [tensor for tensor in run if objection(tensor) is None]
        if fitting and _works(deep_nodes(graph, output, fitting[-1])):
            most = max(len(tensor.shape) for tensor in fitting)
            best = [tensor for tensor in fitting if len(tensor.shape) == most][-1]
            found.append(point_at(best, whole, mask))
    return found


def point_at(tensor: gs.Tensor, whole_macs: int | None, mask: PaddingMask | None) -> ExitPoint:
    """The point at `tensor`; there must be no `objection` to it."""
    before = known_macs(ancestors([tensor]))
    known = whole_macs and before is not None
    share = before / whole_macs if known else None  # type: ignore[operator]
    return ExitPoint(tensor.name, tuple(tensor.shape), _is_map(tensor), share, mask)


def point_named(graph: gs.Graph, output: gs.Tensor, name: str) -> ExitPoint | str:
    """The point at the tensor `name`, or why the network cannot be left there."""
    path = single_path(graph, output)
    tensor = next((item for item in path[:-1] if item.name == name), None)
    if tensor is None:
        exists = any(item.name == name for node in graph.nodes for item in node.outputs)
        return (
            f"there are paths from the inputs to `{output.name}` that do not pass through it"
            if exists
            else "the graph has no such tensor"
        )
    why = objection(tensor)
    if why is None and not _works(deep_nodes(graph, output, tensor)):
        forced = forcing_outputs(graph, output, tensor)
        named = ", ".join(f"`{item}`" for item in forced)
        why = f"the nodes behind it are needed for {named}" if forced else "no work is behind it"
    if why is not None:
        return why
    return point_at(tensor, known_macs(ancestors([output])), padding_mask(graph))


def objection(tensor: gs.Tensor) -> str | None:
    """Why no head can read `tensor`; None where one can."""
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
            if node.op == "Transpose":  # channels come last from here on
                return False
            if _is_work(node):
                return node.op in ("Conv", "ConvTranspose")
        layer = [n for node in layer for t in needs(node) for n in t.inputs if n not in seen]
    return False


def _runs_between_work(path: Sequence[gs.Tensor]) -> Iterator[list[gs.Tensor]]:
    """Runs of tensors on the path without a heavy node between, from the first heavy node on."""
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


def known_macs(nodes: Iterable[Node]) -> int | None:
    """The multiply-accumulates of nodes; None where those of one are not known."""
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
        f"the {node.op} `{node_label(node)}` decides at run time which nodes are computed; an exit "
        "can only be inserted into a graph of which every run computes the same nodes"
    )
