"""The tables of `docs/int8.md`, made from `results/int8_*.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from benchmarks.reporting import DOCS, Found, Row, markdown, megabytes, read, times

PAGE: Final = DOCS / "int8.md"
_COLUMNS: Final = (
    "ours",
    "onnxruntime u8",
    "onnxruntime u8, 7 bits",
    "onnxruntime s8",
    "nncf",
    "onnxsim",
)

_ERRORS: Final = ("English", "figures", "Chinese", "all")  # of characters
_BOXES: Final = ("found again", "boxes", "mAP at 0.5", "mAP 0.5 to 0.95")


def table_of(name: str) -> str | None:
    """The table of that name, where there are results for it."""
    return markdown(_rows(name))


def _rows(name: str) -> Iterator[Row]:
    kind, _, part = name.partition("-")
    for row in (read(f"int8_{kind}") or {"rows": ()})["rows"]:
        if kind == "speed":
            yield _closeness(row) if part == "sqnr" else _speed(row)
        elif kind == "accuracy":
            yield _accuracy(row)
        elif kind == "real" and row["task"] == part:
            yield _JUDGED[part](row)
        elif kind == "cost":
            yield _cost(row)


def _speed(row: Found) -> Row:
    line = {"model": row["model"], "float": f"{row['input_ms']:.2f} ms"}
    for name in _COLUMNS:
        text = times(row["faster"].get(name), "fails")
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


def _ocr(row: Found) -> Row:
    errors = {kind: f"{row[kind]:.2f} %" for kind in _ERRORS} if "all" in row else {}
    line = {"PP-OCRv4 recognition": _setting(row), **_blank(_ERRORS), **errors}
    right = f"{row['right']} of {row['lines']}" if "right" in row else ""
    return {**line, "lines right": right, **_size(row)}


def _boxes(row: Found) -> Row:
    line = {"NudeNet 320n": _setting(row), **_blank(_BOXES)}
    if "boxes" in row:
        line["found again"] = f"{row['found_again']} of {row['boxes_of_float']}"
        line["boxes"] = str(row["boxes"])
        line["mAP at 0.5"] = f"{row['map_50']:.1f} %"
        line["mAP 0.5 to 0.95"] = f"{row['map_50_95']:.1f} %"
    return {**line, **_size(row)}


_JUDGED: Final = {"ocr": _ocr, "boxes": _boxes}


def _setting(row: Found) -> str:
    """Peers by name, ours as they are called."""
    name = row["setting"]
    text = f"`{name}`" if name.startswith("quantize-") else name
    why = row.get("failed")
    return f"{text}: {why}" if why else text


def _blank(names: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(names, "")


def _size(row: Found) -> Row:
    sqnr = row.get("sqnr_db")
    left = row.get("bytes_left")
    back = row.get("back_to_float")
    return {
        "SQNR, dB": "" if sqnr is None else _decibel(sqnr),
        "bytes left": "" if left is None else f"{100 * left:.0f} %",
        "integer kernels": str(row.get("kernels", "")),
        "put back to float": "" if back is None else str(len(back)),
    }


def _cost(row: Found) -> Row:
    seconds, memory = f"{row['seconds']:.0f}", megabytes(row["peak_rss_bytes"])
    if row["status"]:  # it ran into the limit
        seconds, memory = f"failed after {seconds}", f"over {megabytes(row['limit_bytes'])}"
    return {
        "ResNet-50, entropy": row["tool"],
        "images": str(row["images"]),
        "seconds": seconds,
        "peak memory": memory,
        "load": f"{row['load']:.1f}",
    }


__all__ = ["PAGE", "table_of"]
