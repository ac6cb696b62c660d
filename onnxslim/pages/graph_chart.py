"""A picture of a graph: boxes in layers, those that changed marked by colour and by a sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from onnxslim.pages.blocks import Svg
from onnxslim.pages.cursor import At
from onnxslim.pages.drawing import Drawing, shortened
from onnxslim.pages.graph_layout import GraphLayout, layered

_HEIGHT: Final = 36.0
_STEP: Final = 58.0  # from one layer to the next
_BOLD: Final = 7.0  # width of a character of a title
_SMALL: Final = 5.8  # of one of a name
_MOST: Final = 30  # characters of a line
_SIGNS: Final = {"same": "", "changed": "~ ", "gone": "− ", "new": "+ "}
STATES: Final = {
    "changed": "changed",
    "gone": "− gone from the model after",
    "new": "+ new in the model after",
    "same": "the same in both",
}


def graph_chart(outline: At) -> Svg:
    """The boxes of a `GraphOutline` in the JSON of a report."""
    titles = [_lines(box) for box in outline["boxes"]]
    widths = [max(70.0, 18 + max(_BOLD * len(title), _SMALL * len(name))) for title, name in titles]
    edges = [(int(edge.value[0]), int(edge.value[1])) for edge in outline["edges"]]
    layout = layered(widths, edges)
    drawing = Drawing(layout.width + 16, _STEP * max(1, layout.layers) - _STEP + _HEIGHT + 16)
    if layout.routes:
        drawing.path("".join(map(_curve, layout.routes)), "edge")
    for number, (box, lines) in enumerate(zip(outline["boxes"], titles, strict=True)):
        _draw_box(drawing, box, lines, layout, number, widths[number])
    return drawing.svg(f"graph of {outline['nodes'].value} nodes")


def _draw_box(
    drawing: Drawing,
    box: At,
    lines: Sequence[str],
    layout: GraphLayout,
    number: int,
    width: float,
) -> None:
    x, layer = layout.centers[number]
    left, top = x + 8 - width / 2, 8 + _STEP * layer
    title = f"{box['operator'].text}: {box['name'].text}"
    if (box["nodes"].number or 1) > 1:
        title += f", {box['nodes'].value} nodes, {box['changed'].value} of them not the same"
    kind = "node" if box["nodes"].value == 1 else "node many"
    drawing.rect((left, top, width, _HEIGHT), f"{kind} {box['state'].text}", title, radius=5)
    drawing.text((x + 8, top + 15), lines[0], "t m strong")
    drawing.text((x + 8, top + 29), lines[1], "t m faint")


def _lines(box: At) -> tuple[str, str]:
    sign = _SIGNS.get(box["state"].text, "")
    title = f"{sign}{box['operator'].text}"
    if len(title) > _MOST:
        title = f"{title[: _MOST - 1]}…"
    return title, shortened(box["name"].text, 22)


def _curve(route: Sequence[tuple[float, float]]) -> str:
    """A way from the foot of a box to the head of another, vertical at each layer."""
    points = [(x + 8, 8 + _STEP * layer) for x, layer in route]
    start, end = points[0], points[-1]
    ways = [(start[0], start[1] + _HEIGHT)]
    for x, y in points[1:-1]:
        ways += [(x, y), (x, y + _HEIGHT)]
    ways.append(end)
    text = f"M{ways[0][0]:.0f} {ways[0][1]:.0f}"
    for at in range(1, len(ways)):
        (a, b), (c, d) = ways[at - 1], ways[at]
        if a == c:
            text += f"L{c:.0f} {d:.0f}"
        else:
            middle = (b + d) / 2
            text += f"C{a:.0f} {middle:.0f} {c:.0f} {middle:.0f} {c:.0f} {d:.0f}"
    return text
