"""Plot ratio against error for `deep_compression curves`: pruning left, k-means right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.deep_compression.curves import Point

_PANELS: Final = {"prune": "pruning", "cluster": "k-means"}
_COLOURS: Final = ("#888888", "#d98c21", "#1f6fb4", "#2d8a4e")
_TICKS: Final = (1, 1.5, 2, 3, 4, 6, 8)  # of each decade
_SEED: Final = "onnxslim"  # of the names inside the file, so that equal data give equal bytes


def draw(points: Sequence[Point], errors: Mapping[str, float], file: Path) -> None:
    """Write the plot as SVG; `errors` are those of the models as they came, in percent."""
    figure = Figure(figsize=(10, 4.4 * len(errors)), layout="constrained")
    axes = figure.subplots(len(errors), len(_PANELS), squeeze=False)
    for row, (model, error) in zip(axes, errors.items(), strict=True):
        for axis, (family, title) in zip(row, _PANELS.items(), strict=True):
            own = [p for p in points if (p.model, p.family) == (model, family)]
            _panel(axis, own, error)
            axis.set_title(f"{model}: {title}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": _SEED}):
        figure.savefig(file, metadata={"Date": None})


def _panel(axis: Axes, points: Sequence[Point], error: float) -> None:
    names = list(dict.fromkeys(point.curve for point in points))
    heads = list(dict.fromkeys(_style(name)[0] for name in names))
    for name in names:
        own = sorted((p for p in points if p.curve == name), key=lambda p: p.ratio)
        head, is_dashed = _style(name)
        axis.plot(
            [p.ratio for p in own],
            [max(p.error_percent, 0.01) for p in own],
            color=_COLOURS[heads.index(head) % len(_COLOURS)],
            linestyle="--" if is_dashed else "-",
            marker="o",
            markersize=3,
            label=name,
        )
    axis.axhline(error, color="black", linewidth=0.8, linestyle=":", label="float32")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=_TICKS))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("times smaller (float32 .onnx / packed file)")
    axis.set_ylabel("error on 10,000 test images, %")
    axis.grid(visible=True, which="both", alpha=0.2)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


def _style(name: str) -> tuple[str, bool]:
    """What gives a curve its colour, and whether it is dashed."""
    if name.startswith("k-means"):
        head, _, feedback = name.rpartition(", ")
        return head, feedback.endswith("false")
    head, _, scope = name.partition(", ")
    return head, scope == "layer"
