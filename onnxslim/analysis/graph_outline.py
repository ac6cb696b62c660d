"""A graph as at most some hundred boxes, with what another graph has in its place.

Nodes that constants alone determine are left out. Where the others are too many, they are folded:
first what follows a layer in single file into the layer, then chains, piece by piece, then regions
with one way in and one way out, the smallest first (found by immediate post-dominators, as Cooper,
Harvey and Kennedy 2001 compute them), and last, whatever the graph is, neighbours in topological
order.

A node is the same in both graphs where a node of one label has its operator, its attributes and its
constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Final

import networkx as nx
import onnx_graphsurgeon as gs

from onnxslim.analysis.constant_sources import ConstantSources
from onnxslim.details import BoxState, GraphBox, GraphOutline
from onnxslim.graph.counts import node_macs
from onnxslim.graph.ir import Constant, Node, needs, node_label, subgraphs_of
from onnxslim.graph.operands import content

MOST_BOXES: Final = 120
_MANY: Final = 6000  # more are folded in order: regions would take long to find
_END: Final = -1
_SPREAD: Final = 2  # times the mean number of nodes in a box that a piece of a chain may have
_FEWEST: Final = 30  # boxes that a graph becomes by regions: none holds a larger share
_NAMED: Final = 3  # operators that the title of a box names

Groups = dict[int, list[int]]
_Joins = Callable[[int, int], bool]  # whether a box, given second, may join another


def graph_outline(
    graph: gs.Graph, other: gs.Graph | None, *, is_after: bool, most: int = MOST_BOXES
) -> GraphOutline:
    """The boxes of `graph`, bodies not entered, with what changed from or to `other`.

    Args:
        graph: its nodes in topological order.
        other: the graph to compare with; None: all nodes are the same.
        is_after: whether `graph` is the later one: a node of its own is then `new`, else `gone`.
        most: number of boxes.
    """
    sources = ConstantSources(graph)
    nodes = [node for node in graph.nodes if not sources.determine(node)]
    number = {id(node): at for at, node in enumerate(nodes)}
    links = nx.DiGraph()
    links.add_nodes_from(range(len(nodes)))
    for at, node in enumerate(nodes):
        makers = (tensor.inputs[0] for tensor in needs(node) if tensor.inputs)
        links.add_edges_from(
            (number[id(maker)], at) for maker in makers if number.get(id(maker), at) != at
        )
    is_layer = [node_macs(node) != 0 or node.op in ("LSTM", "GRU", "RNN") for node in nodes]
    groups = _folded(links, is_layer, most)
    states = _states(nodes, other, "new" if is_after else "gone")
    place = {member: box for box, members in enumerate(groups) for member in members}
    edges = sorted({(place[a], place[b]) for a, b in links.edges if place[a] != place[b]})
    boxes = tuple(_box([(nodes[at], states[at]) for at in members]) for members in groups)
    return GraphOutline(boxes, tuple(edges), len(graph.nodes), _said(graph, nodes, boxes))


# --------------------------------------------------------------------------- what changed


def _states(nodes: Sequence[Node], other: gs.Graph | None, alone: BoxState) -> list[BoxState]:
    if other is None:
        return ["same"] * len(nodes)
    twins = {node_label(node): node for node in other.nodes}
    return [_state(node, twins, alone) for node in nodes]


def _state(node: Node, twins: Mapping[str, Node], alone: BoxState) -> BoxState:
    twin = twins.get(node_label(node))
    if twin is None:
        return alone
    return "same" if _is_same(node, twin) else "changed"


def _is_same(node: Node, twin: Node) -> bool:
    if (node.op, node.domain or "") != (twin.op, twin.domain or ""):
        return False
    if len(node.inputs) != len(twin.inputs) or node.attrs.keys() != twin.attrs.keys():
        return False
    if subgraphs_of(node) and len(subgraphs_of(node)) == len(subgraphs_of(twin)):
        bodies = zip(subgraphs_of(node), subgraphs_of(twin), strict=True)
        return all(_are_same_bodies(mine, theirs) for mine, theirs in bodies)
    operands = [*zip(node.inputs, twin.inputs, strict=True)]
    values = [(node.attrs[key], twin.attrs[key]) for key in node.attrs]
    return all(_is_equal(mine, theirs) for mine, theirs in (*operands, *values))


def _are_same_bodies(mine: gs.Graph, theirs: gs.Graph) -> bool:
    return len(mine.nodes) == len(theirs.nodes) and all(
        _is_same(a, b) for a, b in zip(mine.nodes, theirs.nodes, strict=True)
    )


def _is_equal(mine: object, theirs: object) -> bool:
    if isinstance(mine, Constant) and isinstance(theirs, Constant):
        return mine.stored is theirs.stored or content(mine) == content(theirs)
    if isinstance(mine, gs.Tensor) or isinstance(theirs, gs.Tensor):
        return not isinstance(mine, Constant) and not isinstance(theirs, Constant)
    return str(mine) == str(theirs)


# --------------------------------------------------------------------------- folding


def _folded(links: nx.DiGraph, is_layer: Sequence[bool], most: int) -> list[list[int]]:
    """Groups of nodes in topological order, each group in that order."""
    groups: Groups = {at: [at] for at in links}
    graph = links.copy()
    largest = _SPREAD * ceil(len(groups) / most)  # a chain is not to become a single box

    def fits(to: int, at: int) -> bool:
        return len(groups[to]) + len(groups[at]) <= largest

    if len(groups) > most:
        _fold_chains(graph, groups, lambda to, at: not is_layer[at] and fits(to, at))
    while len(groups) > most:
        _fold_chains(graph, groups, fits)
        too_many = len(groups) - most
        if len(groups) > _MANY or not _fold_regions(graph, groups, too_many):
            break
    order = [sorted(groups[at]) for at in nx.lexicographical_topological_sort(graph)]
    if len(order) > most:
        step = ceil(len(order) / most)
        order = [
            sorted(member for group in order[at : at + step] for member in group)
            for at in range(0, len(order), step)
        ]
    return order


def _fold_chains(graph: nx.DiGraph, groups: Groups, joins: _Joins) -> None:
    """Fold into its producer each box that `joins` and is alone in reading it, and reads it alone.

    A chain grows into its first box, so one walk in topological order is enough.
    """
    for at in list(nx.lexicographical_topological_sort(graph)):
        before = list(graph.predecessors(at))
        if len(before) == 1 and graph.out_degree(before[0]) == 1 and joins(before[0], at):
            _merge(graph, groups, before[0], [at])


def _fold_regions(graph: nx.DiGraph, groups: Groups, too_many: int) -> bool:
    """Fold the smallest regions between a fork and where its ways meet; whether there was one."""
    ends = _post_dominators(graph)
    regions = []
    largest = ceil(sum(map(len, groups.values())) / _FEWEST)
    for fork in graph:
        end = ends.get(fork, _END)
        if graph.out_degree(fork) > 1 and end not in (_END, fork):
            inside = _between(graph, fork, end)
            if inside is not None and sum(len(groups[at]) for at in (fork, *inside, end)) < largest:
                regions.append((fork, [*inside, end]))
    folded: set[int] = set()
    for fork, inside in sorted(regions, key=lambda region: (len(region[1]), region[0])):
        if too_many <= 0:
            break
        if folded.isdisjoint((fork, *inside)):
            folded |= {fork, *inside}
            _merge(graph, groups, fork, inside)
            too_many -= len(inside)
    return bool(folded)


def _post_dominators(graph: nx.DiGraph) -> dict[int, int]:
    """For each box the nearest one that all ways from it to the end go through."""
    back = graph.reverse()
    back.add_edges_from((_END, at) for at in graph if graph.out_degree(at) == 0)
    found: dict[int, int] = nx.immediate_dominators(back, _END)
    return found


def _between(graph: nx.DiGraph, fork: int, end: int) -> list[int] | None:
    """The boxes between, where no other way leads in or out."""
    inside: dict[int, None] = {}
    stack = list(graph.successors(fork))
    while stack:
        at = stack.pop()
        if at != end and at not in inside:
            inside[at] = None
            stack += graph.successors(at)
    entered = (*inside, end)
    known = {fork, *inside}
    is_closed = all(before in known for at in entered for before in graph.predecessors(at))
    return list(inside) if is_closed else None


def _merge(graph: nx.DiGraph, groups: Groups, into: int, others: Sequence[int]) -> None:
    gone = set(others)
    readers = {to for at in others for to in graph.successors(at)} - gone - {into}
    graph.remove_nodes_from(others)
    graph.add_edges_from((into, to) for to in readers)
    for at in others:
        groups[into] += groups.pop(at)


# --------------------------------------------------------------------------- boxes


def _box(members: Sequence[tuple[Node, BoxState]]) -> GraphBox:
    states = [state for _, state in members]
    changed = sum(state != "same" for state in states)
    state: BoxState = states[0] if len(set(states)) == 1 else "changed"
    return GraphBox(
        _title([node for node, _ in members]),
        node_label(members[0][0]),
        len(members),
        changed,
        state,
    )


def _title(nodes: Sequence[Node]) -> str:
    if len(nodes) == 1:
        return str(nodes[0].op)
    counts = Counter(str(node.op) for node in nodes).most_common()
    named = [f"{count} {op}" if count > 1 else op for op, count in counts[:_NAMED]]
    more = len(counts) - _NAMED
    return ", ".join([*named, *([f"{more} more"] if more > 0 else [])])


def _said(graph: gs.Graph, drawn: Sequence[Node], boxes: Iterable[GraphBox]) -> str:
    """What of the graph does not stand alone in the picture."""
    folded = [box.nodes for box in boxes if box.nodes > 1]
    constant = len(graph.nodes) - len(drawn)
    parts = []
    if folded:
        parts.append(f"{sum(folded):,} nodes are folded into {len(folded):,} boxes")
    if constant:
        parts.append(f"{constant:,} nodes that only make constants are not drawn")
    return "; ".join(parts)
