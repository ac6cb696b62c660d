"""Charts of the figures of a report. What each shows also stands in a table beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from onnxslim.pages.blocks import Svg
from onnxslim.pages.drawing import CHARACTER, Drawing, Scale, shortened
from onnxslim.render.units import bytes_text, ms_text

WIDTH: Final = 1020.0
_LABELS: Final = 150.0  # pixels for names on the left
_ROW: Final = 46.0
_AXIS: Final = 26.0


def change_bar(before: float, after: float, most: float, *, kept: bool = True) -> Svg:
    """A bar from zero to `after`, with what went or came since `before`, of at most `most`."""
    drawing = Drawing(100, 10)
    share = 100 / most if most > 0 else 0.0
    low, high = min(before, after) * share, max(before, after) * share
    drawing.rect((0, 0, low, 10), "bar" if kept else "bar out")
    if high - low > 0.2:
        kind = "lost" if after < before else "grown"
        drawing.rect((low, 0, high - low, 10), kind if kept else f"{kind} out")
    return drawing.svg("bar of the value before and after", stretched=True)


def share_bar(share: float) -> Svg:
    """A small bar for a share in [0, 1]."""
    drawing = Drawing(100, 10)
    drawing.rect((0, 0, 100, 10), "lost")
    drawing.rect((0, 0, 100 * min(1.0, max(0.0, share)), 10), "bar")
    return drawing.svg(f"bar of {share:.0%}", stretched=True)


@dataclass(frozen=True)
class Times:
    """Run times of a model: a name, quantiles at 0, 5, ... 100 %, and the class of its colour."""

    name: str
    quantiles: Sequence[float]
    style: str


def latency_chart(rows: Sequence[Times]) -> Svg:
    """Run times as strips: all runs, the middle half, the median; a dot stands for 5 % of them."""
    values = [q for row in rows for q in row.quantiles]
    # one stray run in a thousand must not squeeze all others
    high = max(1.15 * row.quantiles[19] for row in rows)
    spread = high - min(values)
    scale = Scale(max(0.0, min(values) - 0.06 * spread), high, _LABELS, WIDTH - 20)
    drawing = Drawing(WIDTH, _ROW * len(rows) + _AXIS)
    _axis(drawing, scale, ms_text)
    for at, row in enumerate(rows):
        y = _ROW * at + _ROW / 2
        drawing.text((_LABELS - 12, y + 4), shortened(row.name, 22), "t e")
        q = row.quantiles
        drawing.line((scale(q[0]), y), (scale(q[20]), y), f"whisker {row.style}")
        box = (scale(q[5]), y - 8, scale(q[15]) - scale(q[5]), 16)
        title = f"{row.name}: {ms_text(q[5])} to {ms_text(q[15])} for the middle half of the runs"
        drawing.rect(box, f"box {row.style}", title, radius=2)
        for first, second in itertools.pairwise(q):
            drawing.circle((scale((first + second) / 2), y + 15), 2, row.style)
        drawing.line((scale(q[10]), y - 11), (scale(q[10]), y + 11), f"median {row.style}")
        drawing.text((scale(q[10]), y - 14), ms_text(q[10]), "t m strong")
    return drawing.svg("run times as distributions")


def ratio_chart(rows: Sequence[tuple[str, float, float, float]]) -> Svg:
    """Latency ratios (name, lowest, ratio, highest) with their intervals, around 1."""
    low = min(0.95, *(row[1] for row in rows)) * 0.97
    high = max(1.05, *(row[3] for row in rows)) * 1.03
    scale = Scale(low, high, _LABELS + 60, WIDTH - 20, is_log=True)
    drawing = Drawing(WIDTH, 30.0 * len(rows) + _AXIS)
    _axis(drawing, scale, lambda value: f"{value:g}×")
    drawing.line((scale(1), 0), (scale(1), 30.0 * len(rows)), "one")
    for at, (name, least, ratio, most) in enumerate(rows):
        y = 30.0 * at + 15
        style = "after" if least > 1 else "worse" if most < 1 else "before"
        drawing.text((_LABELS + 48, y + 4), shortened(name, 32), "t e")
        drawing.line((scale(least), y), (scale(most), y), f"interval {style}")
        title = f"{name}: {ratio:.2f} times as fast ({least:.2f} to {most:.2f})"
        drawing.circle((scale(ratio), y), 4.5, style, title)
    return drawing.svg("how many times as fast each model is, with the interval")


def drift_chart(rows: Sequence[tuple[str, float]]) -> Svg:
    """SQNR of layers in the order of the graph; the lower, the farther from the model before."""
    finite = [value for _, value in rows if math.isfinite(value)]
    top, least = max((*finite, 20.0)) + 5, min((*finite, 0.0))
    height, left = 200.0, 56.0
    drawing = Drawing(WIDTH, height + 16)
    scale = Scale(least, top, height - 8, 14)
    for tick in scale.ticks(4):
        drawing.line((left, scale(tick)), (WIDTH - 8, scale(tick)), "rule")
        drawing.text((left - 8, scale(tick) + 4), f"{tick:g} dB", "t e")
    step = (WIDTH - left - 24) / max(1, len(rows))
    worst = sorted(value for _, value in rows)[: min(3, len(rows))]
    for at, (name, value) in enumerate(rows):
        x = left + 12 + step * (at + 0.5)
        y = scale(value if math.isfinite(value) else top if value > 0 else least)
        style = "worse" if value in worst and value < top - 5 else "after"
        drawing.line((x, scale(least)), (x, y), f"stem {style}")
        said = f"{value:.1f} dB" if math.isfinite(value) else "equal" if value > 0 else "lost"
        drawing.circle((x, y), 3.5 if len(rows) < 120 else 2, style, f"{name}: {said}")
        if style == "worse" and value == worst[0]:
            text = shortened(name, 40)
            half = CHARACTER * len(text) / 2
            drawing.text((min(max(x, left + half), WIDTH - half), height + 8), text, "t m")
    return drawing.svg("signal-to-noise ratio of the output of each layer")


def energy_chart(rows: Sequence[tuple[str, Sequence[float]]], show: Callable[[float], str]) -> Svg:
    """Energy of models, (name, picojoules of arithmetic, weights, activations), as bars."""
    most = max((sum(parts) for _, parts in rows), default=0.0)
    scale = Scale(0.0, most or 1.0, _LABELS, WIDTH - 110)
    drawing = Drawing(WIDTH, 40.0 * len(rows) + 6)
    for at, (name, parts) in enumerate(rows):
        y, start = 40.0 * at + 8, 0.0
        drawing.text((_LABELS - 12, y + 17), shortened(name, 22), "t e")
        for style, what, part in zip(
            ("s1", "s2", "s3"), ("arithmetic", "weights", "activations"), parts, strict=True
        ):
            x = scale(start)
            width = scale(start + part) - x
            drawing.rect((x, y, width, 26), style, f"{name}, {what}: {show(part)}")
            start += part
        drawing.text((scale(start) + 8, y + 17), show(sum(parts)), "t strong")
    return drawing.svg("energy by arithmetic, weights and activations")


@dataclass(frozen=True)
class Spot:
    """A point of a scatter chart.

    Attributes:
        name: in words, shown when pointed at.
        is_ringed: whether it was chosen.
        series: number of its colour, from 1.
    """

    x: float
    y: float
    name: str
    is_ringed: bool = False
    series: int = 1


@dataclass(frozen=True)
class ChartAxis:
    """What an axis shows: its title, how values are written, whether they are whole numbers."""

    title: str
    show: Callable[[float], str]
    is_log: bool = False
    is_whole: bool = False


def scatter_chart(spots: Sequence[Spot], x: ChartAxis, y: ChartAxis) -> Svg:
    """Points by two figures; chosen ones are ringed."""
    height, left = 300.0, 84.0
    drawing = Drawing(WIDTH, height + 50)
    across = _scale([spot.x for spot in spots], left + 10, WIDTH - 30, x.is_log)
    up = _scale([spot.y for spot in spots], height - 10, 16, y.is_log)
    for tick in across.ticks(6):
        if x.is_whole and tick != round(tick):
            continue
        drawing.line((across(tick), 8), (across(tick), height), "rule")
        drawing.text((across(tick), height + 18), x.show(tick), "t m")
    for tick in up.ticks(5):
        drawing.line((left, up(tick)), (WIDTH - 12, up(tick)), "rule")
        drawing.text((left - 8, up(tick) + 4), y.show(tick), "t e")
    drawing.text(((left + WIDTH) / 2, height + 42), x.title, "t m strong")
    drawing.text((left, 4 + 6), y.title, "t strong")
    for spot in spots:
        place = (across(spot.x), up(spot.y))
        if spot.is_ringed:
            drawing.circle(place, 10, "ring")
        drawing.circle(place, 4.5, f"s{1 + (spot.series - 1) % 4}", spot.name)
    return drawing.svg(f"{y.title} by {x.title}")


def _scale(values: Sequence[float], start: float, end: float, is_log: bool) -> Scale:
    low, high = min(values), max(values)
    if is_log:
        low = max(low, 1e-12)
        return Scale(low / 1.15, max(high, low) * 1.15, start, end, is_log=True)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - pad, high + pad, start, end)


def _axis(drawing: Drawing, scale: Scale, show: Callable[[float], str]) -> None:
    bottom = drawing.height - _AXIS
    last = -math.inf
    for tick in scale.ticks(6):
        drawing.line((scale(tick), 0), (scale(tick), bottom), "rule")
        text = show(tick)
        half = CHARACTER * len(text) / 2
        if scale(tick) - half > last:  # labels never overlap
            drawing.text((scale(tick), drawing.height - 8), text, "t m")
            last = scale(tick) + half + 6


def bytes_axis(value: float) -> str:
    """A size on an axis."""
    return bytes_text(round(value))


def plain_axis(value: float) -> str:
    """A number on an axis: `0.001`, `1e-05`."""
    return f"{value:g}"
