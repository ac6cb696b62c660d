"""Two models timed in turn, in words: `7.41 -> 4.82 ms, 1.54x (1.50 to 1.58)`."""

from __future__ import annotations

from onnxslim.render.units import ms_text
from onnxslim.report import LatencyPair


def times_text(pair: LatencyPair) -> str:
    """Before and after, of the pairs that the ratio comes from: `7.41 -> 4.82 ms`."""
    before, after = ms_text(pair.before.ms), ms_text(pair.after.ms)
    number, _, unit = before.partition(" ")
    return f"{number if after.endswith(f' {unit}') else before} -> {after}"


def ratio_text(pair: LatencyPair) -> str:
    """Before / after with its interval: `1.54x (1.50 to 1.58)`."""
    return f"{pair.ratio:.2f}x ({pair.low:.2f} to {pair.high:.2f})"


def latency_text(pair: LatencyPair) -> str:
    """Both, and whether the difference is one: `7.41 -> 4.82 ms, 1.54x (1.50 to 1.58)`."""
    text = f"{times_text(pair)}, {ratio_text(pair)}"
    if pair.is_faster:
        return text
    return f"{text}, {'slower' if pair.is_slower else 'no difference beyond noise'}"
