"""The tables of `docs/prune_channels.md`, made from `results/prune_channels_*.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.reporting import DOCS, Row, markdown, megabytes, read, times

PAGE: Final = DOCS / "prune_channels.md"
_PINS_SHOWN: Final = 3


def table_of(name: str) -> str | None:
    """The table of that name, where there are results for it."""
    return markdown(_rows(name))


def _rows(name: str) -> Iterator[Row]:
    kind, _, part = name.partition("-")
    data = read(f"prune_channels_{kind}")
    if data is None:
        return
    if kind == "coverage":
        yield from (_pin_rows if part == "pins" else _coverage_rows)(data["models"])
    elif kind == "speed":
        yield from map(_speed_row, data["models"])
    elif kind == "accuracy":
        yield from _accuracy_rows([row for row in data["rows"] if row["model"] == part])
    elif kind == "large":
        yield from _large_rows(data["runs"])


def _coverage_rows(models: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for model in models:
        yield {
            "model": model["model"],
            "layers": str(model["layers"]),
            "groups": str(model["groups"]),
            "channels": f"{model['channels']:,}",
            "may leave": f"{model['prunable']:,}",
            "removed": f"{model['removed']:,}",
            "of those that may": f"{100 * model['removed_of_prunable']:.1f} %",
            "runs": "yes" if model["runs"] else "no",
        }


def _pin_rows(models: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for model in models:
        for why, count in list(model["pins"].items())[:_PINS_SHOWN]:
            yield {"model": model["model"], "channels": f"{count:,}", "must stay because": why}


def _speed_row(model: Mapping[str, Any]) -> Row:
    def cell(name: str) -> str:
        return times(model["faster"].get(name), "-")

    macs = model["macs_left"]
    return {
        "model": model["model"],
        "input": f"{model['input_ms']:.2f} ms",
        "simplify alone": cell("simplified"),
        "ratio=0.5": f"**{cell('ours')}**",
        "onnxsim, 0.5": cell("onnxsim"),
        "MACs left": "" if macs is None else f"{100 * macs:.0f} %",
        "seconds": f"{model['seconds']:.1f}",
    }


def _accuracy_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    shares = list(dict.fromkeys(row["macs"] for row in rows))
    for setting in dict.fromkeys(row["setting"] for row in rows):
        line = {"setting": setting}
        for share in shares:
            own = [r for r in rows if r["setting"] == setting and r["macs"] == share]
            line[f"macs={share}"] = _accuracy(own[0]) if own else ""
            line[f"seconds at {share}"] = f"{own[0]['seconds']:.0f}" if own else ""
        yield line


def _accuracy(row: Mapping[str, Any]) -> str:
    found = row["accuracy"]
    spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
    lost = row["accuracy_before"] - row["mean"]
    return f"{row['mean']:.2f} %{spread}, {lost:.2f} lost"


def _large_rows(runs: Mapping[str, Mapping[str, float]]) -> Iterator[Row]:
    for label, run in runs.items():
        yield {
            "ResNet-50, ratio=0.5": label,
            "seconds": f"{run['seconds']:.1f}",
            "peak memory": megabytes(run["peak_rss_bytes"]),
            "of the file": f"{run['peak_of_file']:.2f}",
            "load": f"{run['load']:.1f}",
        }


__all__ = ["PAGE", "table_of"]
