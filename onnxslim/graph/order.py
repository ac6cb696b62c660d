"""The order of a graph's nodes: producers before consumers."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxslim.errors import PromiseBroken
from onnxslim.graph.ir import needs, node_label


def sort_topologically(graph: gs.Graph) -> None:
    """Order the nodes of `graph` (not of its bodies) producers first, moving as few as possible.

    Raises:
        PromiseBroken: the graph has a cycle.
    """
    place = {node: index for index, node in enumerate(graph.nodes)}
    # nearly always the order is right already
    late = any(
        place.get(tensor.inputs[0], -1) >= index
        for node, index in place.items()
        for tensor in needs(node)
        if tensor.inputs
    )
    if not late:
        return
    # depth-first search from every node in turn: a node is placed behind all that it needs
    order: list[gs.Node] = []
    state: dict[gs.Node, int] = {}  # 1: being visited, 2: placed
    for root in graph.nodes:
        stack = [root]
        while stack:
            node = stack[-1]
            if state.get(node) == 2:
                stack.pop()
                continue
            if state.get(node) == 1:
                state[node] = 2
                order.append(stack.pop())
                continue
            state[node] = 1
            for tensor in needs(node):
                if tensor.inputs and tensor.inputs[0] in place:
                    producer = tensor.inputs[0]
                    if state.get(producer) == 1:
                        raise PromiseBroken(f"The graph has a cycle through `{node_label(node)}`.")
                    if producer not in state:
                        stack.append(producer)
    graph.nodes = order
