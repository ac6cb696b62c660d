"""SVG, piece by piece. Colours are classes, so that one drawing serves light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from onnxslim.pages.blocks import Svg

CHARACTER: Final = 6.2  # width of a character of small text


@dataclass
class Drawing:
    """A drawing of a width and a height in pixels."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def rect(
        self,
        box: tuple[float, float, float, float],
        style: str,
        title: str = "",
        radius: float = 0,
    ) -> None:
        """A rectangle (x, y, width, height)."""
        x, y, width, height = box
        round_ = f' rx="{radius:g}"' if radius else ""
        size = f'width="{_n(max(width, 0))}" height="{_n(height)}"'
        self._add(f'rect x="{_n(x)}" y="{_n(y)}" {size}{round_}', style, title)

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """A straight line."""
        (a, b), (c, d) = start, end
        self._add(f'line x1="{_n(a)}" y1="{_n(b)}" x2="{_n(c)}" y2="{_n(d)}"', style, "")

    def circle(
        self, center: tuple[float, float], radius: float, style: str, title: str = ""
    ) -> None:
        """A circle."""
        x, y = center
        self._add(f'circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"', style, title)

    def path(self, points: str, style: str) -> None:
        """A path in the language of SVG."""
        self._add(f'path d="{points}"', style, "")

    def text(self, place: tuple[float, float], text: str, style: str = "t") -> None:
        """Text whose baseline begins at `place`; classes `m` and `e` centre or end it there."""
        x, y = place
        self.parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" class="{style}">{escape(text, quote=False)}</text>'
        )

    def svg(self, label: str, *, stretched: bool = False) -> Svg:
        """The whole, with what it shows in words."""
        ratio = ' preserveAspectRatio="none"' if stretched else ""
        size = f'viewBox="0 0 {_n(self.width)} {_n(self.height)}"'
        natural = "" if stretched else f' width="{_n(self.width)}" height="{_n(self.height)}"'
        body = "".join(self.parts)
        return Svg(
            f'<svg {size}{natural}{ratio} role="img" aria-label="{escape(label)}">{body}</svg>',
            label,
        )

    def _add(self, element: str, style: str, title: str) -> None:
        name = element.partition(" ")[0]
        inside = f"<title>{escape(title, quote=False)}</title></{name}>" if title else ""
        end = f">{inside}" if inside else "/>"
        self.parts.append(f'<{element} class="{style}"{end}')


@dataclass(frozen=True)
class Scale:
    """Values on an axis, as places in pixels; with `is_log`, equal ratios take equal lengths."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; what lies outside stands at the end of the axis."""
        low, high, value = (self._shown(number) for number in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values on the axis."""
        if self.is_log:
            return _log_ticks(self.low, self.high)
        if not self.high > self.low:
            return [self.low]
        rough = (self.high - self.low) / wanted
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(at * step, 12) for at in range(first, last + 1)]

    def _shown(self, value: float) -> float:
        return math.log(max(value, 1e-300)) if self.is_log else value


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: Sequence[float] = (1,) if len(decades) > 4 else (1, 2, 5)
    found = [k * 10.0**d for d in decades for k in steps]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) > 1 else [low, high]


def shortened(text: str, most: int) -> str:
    """`text` in at most so many characters; the end of a name tells most."""
    return text if len(text) <= most else f"…{text[len(text) - most + 1 :]}"


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
