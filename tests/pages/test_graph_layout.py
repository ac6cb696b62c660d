"""Layouts of graphs: no box on another, no edge upwards."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.pages.cursor import At
from onnxslim.pages.graph_chart import graph_chart
from onnxslim.pages.graph_layout import layered


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, int]]]:
    count = draw(st.integers(1, 14))
    widths = draw(st.lists(st.floats(10, 200), min_size=count, max_size=count))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return widths, edges


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_boxes_are_apart_and_edges_run_down(
    graph: tuple[list[float], list[tuple[int, int]]],
) -> None:
    widths, edges = graph
    found = layered(widths, edges)
    for (a, b), route in zip(edges, found.routes, strict=True):
        assert [y for _, y in route] == [
            *range(int(found.centers[a][1]), int(found.centers[b][1]) + 1)
        ]
        assert route[0] == found.centers[a]
        assert route[-1] == found.centers[b]
    boxes = sorted((y, x, width) for (x, y), width in zip(found.centers, widths, strict=True))
    for (y, x, width), (other_y, other_x, other_width) in itertools.pairwise(boxes):
        assert y != other_y or other_x - x >= (width + other_width) / 2 - 1e-6
    assert all(x - width / 2 >= -1e-6 for (x, _), width in zip(found.centers, widths, strict=True))
    assert all(
        x + width / 2 <= found.width + 1e-6
        for (x, _), width in zip(found.centers, widths, strict=True)
    )


def test_a_chain_is_straight() -> None:
    found = layered([50, 90, 50], [(0, 1), (1, 2)])
    assert len({x for x, _ in found.centers}) == 1


def test_changed_boxes_are_marked_by_sign_and_colour() -> None:
    box = {"operator": "Conv", "name": "y", "nodes": 1, "changed": 1}
    states = ("same", "changed", "gone", "new")
    boxes = [{**box, "state": state} for state in states]
    data = {"boxes": boxes, "edges": [[0, 1], [1, 2], [2, 3]], "nodes": 4}
    markup = graph_chart(At(data)).markup
    for state, sign in zip(states, ("", "~ ", "− ", "+ "), strict=True):
        assert f'class="node {state}"' in markup
        assert f">{sign}Conv</text>" in markup
