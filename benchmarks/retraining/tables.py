"""The tables and pictures of `docs/retraining.md`, made from `results/retraining_*.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.reporting import DOCS, Found, Row, markdown, times
from benchmarks.retraining import channels, files, levels
from benchmarks.retraining.runs import rows_of

PAGE: Final = DOCS / "retraining.md"
IMAGES: Final = DOCS / "images"
_PREFIX: Final = "retraining_"
_SEED: Final = "onnxslim"  # of the names inside a picture, so that equal data give equal bytes


def table_of(name: str) -> str | None:
    """The table of that name, where there are results for it."""
    make = _TABLES.get(name.removeprefix(_PREFIX))
    return None if make is None else markdown(make())


def draw() -> None:
    """Draw the pictures of which there are results."""
    for name, plot in _PLOTS.items():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        if not plot(figure.subplots()):
            continue
        with mpl.rc_context({"svg.hashsalt": _SEED}):
            figure.savefig(IMAGES / f"{_PREFIX}{name}.svg", metadata={"Date": None})


# ---------------------------------------------------------------------------- channels

_CLOSED: Final = "closed form (`prune-channels`)"


def _channel_settings() -> Mapping[str, str]:
    """What rows are called in the table, by the end of their names."""
    steps = {channels.distilled(n): f"then {_epochs(n)} of `finetune`" for n in channels.EPOCHS}
    some = channels.BASELINE_EPOCHS
    baselines = {}
    for name in channels.BASELINES:
        baselines[name] = name
        baselines[f"{name}, {channels.distilled(some)}"] = f"{name}, then {_epochs(some)}"
    scratch = {name: name for name in (channels.SAME_EPOCHS, channels.SAME_WORK)}
    return {channels.CLOSED: _CLOSED, **steps, **baselines, **scratch}


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def _of(rows: Sequence[Found], share: float, setting: str) -> list[Found]:
    return [row for row in rows if row["row"] == f"macs {share:g}, {setting}"]


def _channel_rows() -> Iterator[Row]:
    rows = rows_of("channels")
    base = {row["seed"]: row["error"] for row in rows if row["row"] == "original"}
    for setting, label in _channel_settings().items():
        cells = {}
        for share in channels.SHARES:
            own = _of(rows, share, setting)
            cells[f"macs={share:g}"] = _lost(own, base)
        if any(cells.values()):
            yield {"points more error than the original": label, **cells}


def _lost(rows: Sequence[Found], base: Mapping[int, float]) -> str:
    """Points above the original: the mean, the range over seeds, processor seconds."""
    lost = [row["error"] - base[row["seed"]] for row in rows if row["seed"] in base]
    if not lost:
        return ""
    spread = f" ({min(lost):+.2f} to {max(lost):+.2f})" if len(lost) > 1 else ""
    return f"{np.mean(lost):+.2f}{spread}; {np.mean([row['cpu'] for row in rows]):,.0f} s"


def _channel_times() -> Iterator[Row]:
    rows = rows_of("channels")
    for share in channels.SHARES:
        own = [row for row in rows if row.get("share") == share and row.get("faster")]
        if own:
            first = own[0]
            yield {
                "budget": f"macs={share:g}",
                "multiply-accumulates left": f"{100 * first['macs_left']:.1f} %",
                "times faster": times(first["faster"], "not timed"),
            }


def _plot_channels(axis: Axes) -> bool:
    rows = rows_of("channels")
    base = {row["seed"]: row["error"] for row in rows if row["row"] == "original"}
    for setting, label in _channel_settings().items():
        points = []
        for share in channels.SHARES:
            lost = [row["error"] - base[row["seed"]] for row in _of(rows, share, setting)]
            if lost:
                points.append((share, max(float(np.mean(lost)), 0.02)))
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("share of the multiply-accumulates")
    axis.set_ylabel("points of error more than the original")
    return _has_curves(axis)


def _has_curves(axis: Axes) -> bool:
    """Whether a line of several points was drawn; gives the plot its grid and legend."""
    axis.grid(visible=True, which="both", alpha=0.2)
    if axis.lines:
        axis.legend(fontsize=7)
    return any(len(line.get_xdata()) > 1 for line in axis.lines)


# ---------------------------------------------------------------------------- files


def _file_rows() -> Iterator[Row]:
    rows = rows_of("files")
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        net, _, setting = name.partition(", ")
        yield {
            "net": net,
            "setting": setting,
            "packed bytes": _number([row["bytes"] for row in own], ",.0f"),
            "times smaller": _number([row["ratio"] for row in own], ".1f"),
            "error, %": _number([row["error"] for row in own], ".2f"),
            "CPU s": _number([row.get("cpu", 0.0) for row in own], ",.0f"),
        }


def _plot_files(axis: Axes) -> bool:
    rows = rows_of("files")
    for net, line in (("lenet300", "-"), ("lenet5", "--")):
        for how, colour in _HOW.items():
            own = [row for row in rows if row["row"].startswith(net) and row["row"].endswith(how)]
            if own:
                points = sorted((row["ratio"], row["error"]) for row in own)
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=3,
                    linestyle=line,
                    color=colour,
                    label=f"{net}, {how}",
                )
    axis.set_yscale("log")
    axis.set_xlabel("times smaller (float32 .onnx / packed file)")
    axis.set_ylabel("error on 10,000 test images, %")
    return _has_curves(axis)


_HOW: Final = {
    files.UNTRAINED: "#888888",
    files.LABELS: "#d98c21",
    files.DISTILLED: "#1f6fb4",
    files.MOVED: "#2a9d5c",
    files.STAGED: "#8452a8",
    files.GROWN: "#c2385a",
}


def _number(values: Sequence[float], form: str) -> str:
    """The mean, and the range where there are several seeds."""
    spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}"


# ---------------------------------------------------------------------------- encoder


def _encoder_rows() -> Iterator[Row]:
    rows = rows_of("encoder")
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        yield {
            "step": f"`{own[0]['pipeline']}`",
            "bytes left": f"{100 * own[0]['bytes'] / own[0]['bytes_before']:.0f} %",
            "mean cosine": _number([row["cosine"] for row in own], ".3f"),
            "least cosine": _number([row["least"] for row in own], ".3f"),
            "times faster": times(own[0]["faster"], "not timed"),
            "CPU s": _number([row["cpu"] for row in own], ",.0f"),
        }


# ---------------------------------------------------------------------------- pictures


def _picture_rows() -> Iterator[Row]:
    rows = rows_of("pictures")
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        yield {
            "step": f"`{own[0]['pipeline']}`",
            "first answers kept": _number([row["agreement"] for row in own], ".1f") + " %",
            "times faster": times(own[0]["faster"], "not timed"),
            "CPU s": _number([row["cpu"] for row in own], ",.0f"),
        }


# ---------------------------------------------------------------------------- levels


def _level_rows() -> Iterator[Row]:
    rows = rows_of("levels")
    for net in levels.NETS:
        base = next((row["error"] for row in rows if row["row"] == f"{net}, original"), "?")
        for name, spec in levels.PASSES.items():
            plain = [row for row in rows if row["row"] == f"{net}, {name}"]
            trained = [row for row in rows if row["row"] == f"{net}, {name}, {levels.DISTILLED}"]
            if plain and trained:
                yield {
                    "net": f"{net} ({base} %)",
                    "weights": f"{name} (`{spec}`)",
                    "error, %": _number([row["error"] for row in plain], ".2f"),
                    "after `finetune`": _number([row["error"] for row in trained], ".2f"),
                    "CPU s": _number([row["cpu"] for row in trained], ",.0f"),
                }


# ---------------------------------------------------------------------------- density


def _density_rows() -> Iterator[Row]:
    rows = rows_of("density")
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        yield {
            "way": name,
            "weights left": _number([100 * row["density"] for row in own], ".2f") + " %",
            "error, %": _number([row["error"] for row in own], ".2f"),
            "CPU s": _number([row.get("cpu", 0.0) for row in own], ",.0f"),
        }


# ---------------------------------------------------------------------------- exits


def _exit_rows() -> Iterator[Row]:
    for row in rows_of("exits"):
        yield {
            "exits": row["row"],
            "points lost": f"{row['error'] - row['error_before']:+.2f}",
            "times faster": times(row["faster"], "not timed"),
            "CPU s": f"{row['cpu']:,.0f}",
        }


# ---------------------------------------------------------------------------- int8


def _quantized_rows() -> Iterator[Row]:
    for row in rows_of("quantized"):
        is_text = row["figure"] == "right"
        whole = row["lines"] if is_text else row["boxes_of_float"]
        what = "lines read to the letter" if is_text else "boxes found again"
        yield {
            "model": row["row"],
            "figure": f"{row[row['figure']]} of {whole} {what}",
            "SQNR, dB": "" if "sqnr_db" not in row else f"{row['sqnr_db']:.1f}",
            "CPU s": "" if "cpu" not in row else f"{row['cpu']:,.0f}",
        }


_TABLES: Final[Mapping[str, Callable[[], Iterator[Row]]]] = {
    "channels": _channel_rows,
    "channel_times": _channel_times,
    "files": _file_rows,
    "levels": _level_rows,
    "density": _density_rows,
    "exits": _exit_rows,
    "quantized": _quantized_rows,
    "encoder": _encoder_rows,
    "pictures": _picture_rows,
}
_PLOTS: Final[Mapping[str, Callable[[Axes], bool]]] = {
    "channels": _plot_channels,
    "files": _plot_files,
}
