"""Outlines of graphs: what changed, and how large graphs fold."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest

from onnxslim.analysis.graph_outline import MOST_BOXES, graph_outline
from onnxslim.details import GraphOutline
from onnxslim.graph.ir import Graph
from onnxslim.io.model import Model
from support import parse


def graph_of(body: str, *, weights: str = "", size: int = 4) -> Graph:
    text = f"""<opset_import: ["" : 17]> g (float[{size}] x) => (float[{size}] y)
    {weights} {{ {body} }}"""
    graph: Graph = Model.load(parse(text)).graph
    return graph


def states(outline: GraphOutline) -> dict[str, str]:
    return {box.name: box.state for box in outline.boxes}


def test_nodes_are_marked_in_both_graphs() -> None:
    w = "<float[4] w = {1, 2, 3, 4}>"
    before = graph_of("a = Add (x, w) b = Relu (a) c = Exp (b) y = Neg (c)", weights=w)
    w = "<float[4] w = {1, 2, 3, 5}>"
    after = graph_of("a = Add (x, w) c = Abs (a) d = Exp (c) y = Neg (d)", weights=w)
    found = states(graph_outline(before, after, is_after=False))
    assert found == {"a": "changed", "b": "gone", "c": "changed", "y": "same"}
    found = states(graph_outline(after, before, is_after=True))
    assert found == {"a": "changed", "c": "changed", "d": "new", "y": "same"}


def test_an_attribute_or_a_body_is_a_change() -> None:
    text = "a = LeakyRelu <alpha = {}> (x) y = Neg (a)"
    pair = [graph_of(text.replace("{}", alpha)) for alpha in ("0.1", "0.2")]
    assert states(graph_outline(*pair, is_after=True)) == {"a": "changed", "y": "same"}
    assert states(graph_outline(pair[0], pair[0], is_after=True)) == {"a": "same", "y": "same"}


def test_nodes_that_make_constants_are_not_drawn() -> None:
    w = "<float[4] w = {1, 2, 3, 4}>"
    graph = graph_of("c = Exp (w) y = Add (x, c)", weights=w)
    found = graph_outline(graph, None, is_after=False)
    assert [box.operator for box in found.boxes] == ["Add"]
    assert found.folded == "1 nodes that only make constants are not drawn"


def chain(count: int) -> str:
    names = ["x", *(f"t{at}" for at in range(count - 1)), "y"]
    return " ".join(f"{b} = Relu ({a})" for a, b in itertools.pairwise(names))


def blocks(count: int) -> str:
    """Residual blocks of two branches of three nodes."""
    parts, last = [], "x"
    for at in range(count):
        out = "y" if at == count - 1 else f"o{at}"
        parts.append(
            f"a{at} = Exp ({last}) b{at} = Neg (a{at}) c{at} = Abs (b{at}) "
            f"d{at} = Sin ({last}) e{at} = Cos (d{at}) f{at} = Neg (e{at}) "
            f"{out} = Add (c{at}, f{at})"
        )
        last = out
    return " ".join(parts)


def tangle(count: int) -> str:
    """Nodes that each read the two before them: no chain, no region."""
    names = ["x", "t0", *(f"t{at}" for at in range(1, count - 1)), "y"]
    lines = ["t0 = Neg (x)"]
    lines += [f"{names[at]} = Add ({names[at - 1]}, {names[at - 2]})" for at in range(2, count + 1)]
    return " ".join(lines)


@pytest.mark.parametrize("body", [chain(600), blocks(90), blocks(400), tangle(700)])
def test_large_graphs_fold_into_few_boxes(body: str) -> None:
    graph = graph_of(body)
    found = graph_outline(graph, None, is_after=False)
    assert MOST_BOXES / 3 < len(found.boxes) <= MOST_BOXES
    assert sum(box.nodes for box in found.boxes) == len(graph.nodes) == found.nodes
    assert all(a < b for a, b in found.edges)
    assert nx.is_weakly_connected(nx.DiGraph(list(found.edges)))
    assert "nodes are folded into" in found.folded


def test_a_small_graph_is_not_folded() -> None:
    found = graph_outline(graph_of(chain(40)), None, is_after=False)
    assert len(found.boxes) == 40
    assert found.folded == ""
