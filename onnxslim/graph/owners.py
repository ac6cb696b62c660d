"""Which graph writes which constant as its initializer.

A model in memory says so of each constant (`Constant.home`) only where the file that it was read
from did. Copies say it of all, so that a pass sees the same model whether it was written meanwhile
or not.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Constant, subgraphs_of, walk_graphs


def owners(graph: gs.Graph) -> dict[int, list[Constant]]:
    """The constants that each graph writes as its initializers, by id, in order of first use.

    A constant is written where the file had it, or, if it is new or its uses have spread, in the
    innermost graph that encloses all of them. Below IR version 4 every initializer must be an
    input as well, which a body cannot have: all go to the main graph.
    """
    old_ir = (graph.ir_version or 4) < 4
    paths: dict[int, tuple[gs.Graph, ...]] = {}
    uses: dict[int, tuple[Constant, tuple[gs.Graph, ...]]] = {}

    def use(tensor: gs.Tensor, path: tuple[gs.Graph, ...]) -> None:
        if not isinstance(tensor, gs.Constant):
            return
        known = uses.get(id(tensor))
        if known is not None:  # the common part of both paths encloses both uses
            path = tuple(a for a, b in zip(known[1], path, strict=False) if a is b)
        uses[id(tensor)] = (tensor, path)

    def visit(current: gs.Graph, path: tuple[gs.Graph, ...]) -> None:
        path = (*path, current)
        paths[id(current)] = path
        for node in current.nodes:
            for tensor in node.inputs:
                use(tensor, path)
            for inner in subgraphs_of(node):
                visit(inner, path)
        for tensor in current.outputs:
            use(tensor, path)

    visit(graph, ())
    owned: dict[int, list[Constant]] = {}
    for constant, path in uses.values():
        home = getattr(constant, "home", None)
        owner = home if home is not None and any(home is g for g in path) else path[-1]
        owner = graph if old_ir else owner
        owned.setdefault(id(owner), []).append(constant)
    return owned


def settle_owners(graph: gs.Graph) -> None:
    """Let every constant have the home that a file would give it."""
    owned = owners(graph)
    for current in walk_graphs(graph):
        for constant in owned.get(id(current), ()):
            constant.home = current
