"""The tables of `docs/early_exit.md`, made from `results/early_exit_*.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Final

from benchmarks.reporting import DOCS, Found, Row, markdown, read, times

PAGE: Final = DOCS / "early_exit.md"


def table_of(name: str) -> str | None:
    """The table of that name; None where nothing was measured for it."""
    found = read(f"early_exit_{name}")
    return None if found is None else markdown(_TABLES[name](found["rows"]))


def _curve(rows: list[Found]) -> Iterator[Row]:
    for row in rows:
        options = dict(part.split("=") for part in row["spec"].split(":")[1:])
        shares = [f"{share / sum(row['shares']):.0%}" for share in row["shares"]]
        yield {
            "model": row["model"],
            "head": options["head"],
            "target": f"{100 * float(options['target']):g} %",
            "exits": str(len(shares) - 1),
            "agreement": f"{100 * row['agreement']:.2f} %",
            "accuracy": f"{100 * row['accuracy']:.2f} % (was {100 * row['accuracy_before']:.2f})",
            "leave at each, the rest": ", ".join(shares),
            "times faster, mean": _ratio(row),
            "median": f"{row['median_ms'][0] / row['median_ms'][1]:.2f}",
            "worst (99th percentile)": f"{row['worst_ms'][0] / row['worst_ms'][1]:.2f}",
        }


def _batches(rows: list[Found]) -> Iterator[Row]:
    for row in rows:
        yield {
            "model": row["model"],
            "setting": f"`{row['spec'].split(':', 2)[-1]}`",
            "batch": str(row["size"]),
            "samples": row["samples"],
            "times faster": _ratio(row),
        }


def _ratio(row: Found) -> str:
    return times((row["ratio"], row["ratio_low"], row["ratio_high"]), "")


def _promise(rows: list[Found]) -> Iterator[Row]:
    for (model, target), own in groupby(rows, lambda row: (row["model"], row["target"])):
        draws = list(own)
        yield {
            "model": model,
            "target": f"{100 * target:g} %",
            "agreement on the test set, by draw": ", ".join(
                f"{100 * row['agreement']:.2f}" for row in draws
            ),
            "held": f"{sum(row['held'] for row in draws)} of {len(draws)}",
        }


def _overhead(rows: list[Found]) -> Iterator[Row]:
    for row in rows:
        share, low, high = (100 * row[key] for key in ("share_of_latency", "low", "high"))
        yield {
            "model": row["model"],
            "work before the exit": f"{row['work_before']:.0%}",
            "exit": row["exit"],
            "latency, share of the original's": f"{share:.1f} % ({low:.1f} to {high:.1f})",
        }


_TABLES: Final[Mapping[str, Callable[[list[Found]], Iterator[Row]]]] = {
    "curve": _curve,
    "batches": _batches,
    "promise": _promise,
    "overhead": _overhead,
}

__all__ = ["PAGE", "table_of"]
