"""Pictures of what was measured; matplotlib, an extra, is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxslim.errors import UsageError

if TYPE_CHECKING:
    from onnxslim.sweep import Point

_LEAST = 1e-9  # divergence that a logarithmic axis still shows
_SEED = "onnxslim"  # of the names inside an SVG, so that equal figures give equal bytes


def draw_sensitivity(points: Sequence[Point], file: Path) -> None:
    """Divergence of the outputs by target, a mark for each strength; SVG or PNG by the name.

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    targets = list(dict.fromkeys(point.target for point in points))
    strengths = list(dict.fromkeys(point.strength for point in points))
    height = max(2.5, 0.22 * len(targets) + 1.2)
    figure = Figure(figsize=(9, height), layout="constrained")
    axis = figure.subplots()
    for strength in strengths:
        own = [p for p in points if p.strength == strength and p.distance is not None]
        axis.plot(
            [max(p.distance.divergence, _LEAST) for p in own if p.distance is not None],
            [targets.index(p.target) for p in own],
            marker="o",
            linestyle="none",
            label=f"{points[0].option}={strength}" if points[0].option else "as given",
        )
    axis.set_yticks(range(len(targets)), targets, fontsize=7)
    axis.set_ylim(len(targets) - 0.5, -0.5)
    axis.set_xscale("log")
    axis.set_xlabel("divergence of the outputs, this one alone treated")
    axis.grid(visible=True, alpha=0.3)
    if strengths:
        axis.legend(fontsize=7)
    metadata = {"Date": None} if file.suffix == ".svg" else None
    try:
        with mpl.rc_context({"svg.hashsalt": _SEED}):
            figure.savefig(file, metadata=metadata)
    except OSError as error:
        raise UsageError(f"`{file}` cannot be written: {error.strerror or error}.") from error


__all__ = ["draw_sensitivity"]
