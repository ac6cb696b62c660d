"""The tables and the picture of `docs/low_rank.md`, made from `results/low_rank_*.json`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.reporting import DOCS, Found, Row, markdown, megabytes, read, times

PAGE: Final = DOCS / "low_rank.md"
_WIDE: Final = 4


def table_of(name: str) -> str | None:
    """The table of that name, where there are results for it."""
    return markdown(_rows(name))


def _rows(name: str) -> Iterator[Row]:
    for row in (read(f"low_rank_{name}") or {"rows": ()})["rows"]:
        if name == "spectra":
            yield _spectrum(row)
        elif name == "trained":
            yield _trained(row)
        elif name.startswith("decaying"):
            yield _decaying(row)
        elif name == "nothing":
            yield from _nothing(row)
        elif name == "large":
            yield _large(row)


def _spectrum(row: Found) -> Row:
    low, median, high = row["exponent"]
    return {
        "model": row["model"],
        "layers": f"{row['layers']} {row['kind']}",
        "exponent, median (quartiles)": f"{median:.2f} ({low:.2f} to {high:.2f})",
        "ranks for 99 % of the energy": f"{100 * row['ranks_of_99']:.0f} %",
    }


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _trained(row: Found) -> Row:
    before, after = row["accuracy"]
    return {
        "pipeline": f"`{row['spec']}`",
        "times faster": times(row["faster"], "not timed"),
        "MACs left": _share(row["macs_left"]),
        "bytes left": _share(row["bytes_left"]),
        "accuracy": f"{100 * before:.2f} to {100 * after:.2f} %",
        "seconds": f"{row['seconds']:.0f}",
    }


def _decaying(row: Found) -> Row:
    left_out = [why for why in row["why_not"] if why]
    return {
        "model, exponents (conv, dense)": f"{row['model'].split('_')[0]}, "
        f"{row['exponents']['conv']:g}, {row['exponents']['dense']:g}",
        "pipeline": f"`{row['spec']}`",
        "images": str(row["images"]),
        "times faster": times(row["faster"], "not timed"),
        "weights' bytes left": _share(row["bytes_left"]),
        "output error": f"{row['error']:.3g}",
        "seconds": f"{row['seconds']:.0f}",
        "left out": "; ".join(left_out) or "nothing",
    }


def _nothing(row: Found) -> Iterator[Row]:
    for why, count in row["whys"].items():
        yield {
            "model": row["model"],
            "bytes changed": "no" if row["same_bytes"] else "yes",
            "layers": str(count),
            "reason": why,
        }


def _large(row: Found) -> Row:
    return {
        "ResNet-50, `factorize-conv`": f"{row['images']} images"
        if row["images"]
        else "without data",
        "seconds": f"{row['seconds']:.0f}",
        "peak memory": megabytes(row["peak_rss_bytes"]),
        "load": f"{row['load']:.1f}",
    }


# ---------------------------------------------------------------------------- curves


def write_csv(rows: Sequence[Found], target: Path) -> None:
    """All points, a line each."""
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw_curves(rows: Sequence[Found], target: Path) -> None:
    """One small panel for each layer: error against weights left, a line for each method."""
    layers = list(dict.fromkeys((row["model"], row["layer"]) for row in rows))
    high = -(-len(layers) // _WIDE)
    figure = Figure(figsize=(4 * _WIDE, 2.8 * high), layout="constrained")
    axes = figure.subplots(high, _WIDE, squeeze=False)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = dict(zip(methods, mpl.color_sequences["tab10"], strict=False))
    for axis in list(axes.flat)[len(layers) :]:
        axis.set_visible(False)
    for (model, layer), axis in zip(layers, axes.flat, strict=False):
        own = [row for row in rows if (row["model"], row["layer"]) == (model, layer)]
        for method in dict.fromkeys(row["method"] for row in own):
            points = sorted((r["weights"], r["error"]) for r in own if r["method"] == method)
            x, y = zip(*points, strict=True)
            axis.semilogy(x, y, marker=".", label=method, color=colours[method])
        axis.set_title(f"{model}: {layer}", fontsize=7)
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize=6)
    figure.supxlabel("share of weights left")
    figure.supylabel("relative output error")
    with mpl.rc_context({"svg.hashsalt": "onnxslim"}):
        figure.savefig(target, metadata={"Date": None})


__all__ = ["PAGE", "draw_curves", "table_of", "write_csv"]
