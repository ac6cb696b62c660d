"""Draw sensitivity points. Needs matplotlib, which the extra `plot` installs."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from onnxslim.tools.sensitivity import SensitivityPoint

_MIN_DIVERGENCE = 1e-9  # smaller values are drawn here, on a logarithmic axis
PICTURE_SIGN: Final = "onnxslim-compiler"
"""Stands in the metadata of each picture, at its beginning."""

_METADATA: Final = {
    "svg": {"Date": None, "Creator": PICTURE_SIGN},
    "png": {"Software": PICTURE_SIGN},
}
_SVG_SALT = "onnxslim"  # of the ids in an SVG, so that equal figures give equal bytes


def sensitivity_picture(points: Sequence[SensitivityPoint], form: str) -> bytes:
    """A chart of output divergence by target, one marker for each strength.

    `form` is `svg` or `png`.
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
            [max(p.distance.divergence, _MIN_DIVERGENCE) for p in own if p.distance is not None],
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
    drawn = BytesIO()
    with mpl.rc_context({"svg.hashsalt": _SVG_SALT}):
        figure.savefig(drawn, format=form, metadata=_METADATA[form])
    return drawn.getvalue()
