"""The tables of `docs/int8.md`, made from `results/int8_*.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from prune_channels_tables import markdown

PAGE: Final = Path(__file__).parents[1] / "docs" / "int8.md"
RESULTS: Final = Path(__file__).parent / "results"
_MARK: Final = re.compile(r"<!-- table: (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
_COLUMNS: Final = ("ours", "onnxruntime u8", "onnxruntime s8", "nncf", "onnxsim")

Found = Mapping[str, Any]
Row = Mapping[str, str]


def refreshed(page: str) -> str:
    """The page with every table that there are results for made anew."""

    def fill(match: re.Match[str]) -> str:
        rows = list(_rows(match["name"]))
        if not rows:
            return match[0]
        return f"<!-- table: {match['name']} -->\n{markdown(rows)}\n<!-- end -->"

    return _MARK.sub(fill, page)


def _rows(name: str) -> Iterator[Row]:
    kind, _, part = name.partition("-")
    file = RESULTS / f"int8_{kind}.json"
    if not file.exists():
        return
    for row in json.loads(file.read_text())["rows"]:
        if kind == "speed":
            yield _closeness(row) if part == "sqnr" else _speed(row)
        elif kind == "accuracy":
            yield _accuracy(row)
        elif kind == "cost":
            yield _cost(row)


def _speed(row: Found) -> Row:
    line = {"model": row["model"], "float": f"{row['input_ms']:.2f} ms"}
    for name in _COLUMNS:
        found = row["faster"].get(name)
        text = "fails" if found is None else f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"
        line[name] = f"**{text}**" if name == "ours" else text
    return {**line, "integer kernels": str(row["kernels"]) if row["committed"] else "0"}


def _closeness(row: Found) -> Row:
    line = {"model": row["model"]}
    for name in _COLUMNS:
        found = row["sqnr_db"].get(name)
        line[name] = "fails" if found is None else ", ".join(map(_decibel, found))
    return line


def _decibel(value: float) -> str:
    return "unchanged" if value > 120 else f"{value:.1f}"


def _accuracy(row: Found) -> Row:
    after = row.get("after")
    lost = "" if after is None else f"{row['before'] - after:+.2f}"
    return {
        "model": row["model"],
        "quantizer": f"`{row['setting']}`" if ":" in row["setting"] else row["setting"],
        "accuracy": row.get("failed") or f"{after:.2f} %",
        "points lost": lost,
    }


def _cost(row: Found) -> Row:
    return {
        "ResNet-50, entropy": row["tool"],
        "images": str(row["images"]),
        "seconds": f"{row['seconds']:.0f}",
        "peak memory": f"{row['peak_rss_bytes'] / 1e6:,.0f} MB",
        "load": f"{row['load']:.1f}",
    }


__all__ = ["PAGE", "refreshed"]
