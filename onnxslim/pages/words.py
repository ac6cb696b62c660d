"""Figures of reports in the words that all pages share."""

from __future__ import annotations

import math

from onnxslim.pages.blocks import Cell, Column, Fact, Line, Tone
from onnxslim.pages.cursor import At
from onnxslim.render.units import ms_text

NAME = Column("", is_figure=False)


def percent(share: float) -> str:
    """A share in [0, 1]: `98.90 %`."""
    return f"{100 * share:.2f} %"


def decibel(value: float) -> str:
    """A signal-to-noise ratio: `31.2 dB`; `equal` where nothing moved."""
    if math.isinf(value):
        return "equal" if value > 0 else "lost"
    return f"{value:.1f} dB"


def cosine(value: float) -> str:
    """A cosine similarity: `0.9984`."""
    return f"{value:.4f}"


def significant(value: float) -> str:
    """Three digits: `0.140`, `3.81e-06`, `1,070`."""
    if not value or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def whole(value: float) -> str:
    """A count with separators."""
    return f"{value:,.0f}"


def times(value: float) -> str:
    """A ratio: `1.54×`."""
    return f"{value:.2f}×"


def plain(fact: Line, *, tone: Tone = "plain") -> Cell:
    """A cell of one line."""
    return Cell((fact,), tone=tone)


def code(fact: Line, *more: Line) -> Cell:
    """A cell with a name or text for a machine."""
    return Cell((fact, *more), is_code=True)


def interval(pair: At) -> tuple[str | Fact, ...]:
    """The interval of the ratio of a pair of models."""
    return (pair["ratio_low"].figure(times), " to ", pair["ratio_high"].figure(times))


def latency_ms(latency: At) -> Fact:
    """The figure of a `Latency` to print: of a pair the mean that its ratio comes from."""
    mean = latency["pairs_mean"]
    return (mean if mean else latency["median"]).figure(ms_text)


def speed_words(pair: At) -> str:
    """How much faster, in words: `1.54 times as fast (1.50 to 1.58)`."""
    ratio, low, high = (pair[key].number or 1.0 for key in ("ratio", "ratio_low", "ratio_high"))
    spread = f"{low:.2f} to {high:.2f}"
    if low <= 1.0 <= high:
        return f"no difference in latency beyond noise (ratio {spread})"
    return f"{ratio:.2f} times as fast ({spread})"
