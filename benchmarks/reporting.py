"""What all benchmarks do with what they find: rows saved as they come, tables put into pages.

A result is the file `results/NAME.json`. A table stands in a page between `<!-- table: NAME -->`
and `<!-- end -->`, and is made anew from its result; without one it stays as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console

CONSOLE: Final = Console(width=150)
ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
DOCS: Final = ROOT / "docs"
MACHINE: Final = "two shared x86-64 cores"

_TABLE: Final = re.compile(
    r"(?P<head><!-- table: (?P<name>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)

Found = Mapping[str, Any]  # a row as it was measured
Row = Mapping[str, str]  # a row as a page has it


# ---------------------------------------------------------------------------- results


def save(name: str, content: Found) -> None:
    """Write `content`, and what it was measured on, to `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    whole = {"machine": MACHINE, "python": platform.python_version(), **content}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")


def saved(
    name: str | None,
    rows: Iterable[Found],
    *,
    key: str = "rows",
    replacing: Sequence[str] = (),
    **about: object,
) -> list[Found]:
    """Print each row, and save all so far after it: one that fails late costs no other.

    Several processes may add to one result at a time where `replacing` tells rows apart.

    Args:
        name: of the result; None prints only.
        rows: usually a generator that measures.
        key: what the rows are called in the file.
        replacing: entries that tell rows apart: a row takes the place of the one in the file for
            which they are the same, and all others stay. Without any the file begins anew.
        about: what else the file says, before the rows.
    """
    found: list[Found] = []
    for row in rows:
        CONSOLE.print(row, soft_wrap=True)
        with _alone():
            # another process may have written since
            old = read(name) if name is not None and replacing else None
            found = list(old[key]) if old is not None else found
            same = (all(was[k] == row[k] for k in replacing) for was in found)
            place = next((at for at, is_same in enumerate(same) if is_same), None)
            if replacing and place is not None:
                found[place] = row
            else:
                found.append(row)
            if name is not None:
                save(name, {**about, key: found})
    return found


@contextmanager
def _alone() -> Iterator[None]:
    """Keep other processes from adding to a result until this one has."""
    RESULTS.mkdir(exist_ok=True)
    folder = os.open(RESULTS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # which gives up the lock


def read(name: str) -> dict[str, Any] | None:
    """The object in `results/NAME.json`; None where there is no such file."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return None
    whole: dict[str, Any] = json.loads(file.read_text())
    return whole


# ---------------------------------------------------------------------------- pages


def refresh(page: Path, table_of: Callable[[str], str | None]) -> None:
    """Make every table of a page anew that `table_of` returns one for, by its name."""
    page.write_text(refreshed(page.read_text(), table_of))


def refreshed(text: str, table_of: Callable[[str], str | None]) -> str:
    """The text of a page with its tables made anew."""

    def fill(match: re.Match[str]) -> str:
        table = table_of(match["name"])
        return match[0] if table is None else f"{match['head']}{table}\n{match['end']}"

    return _TABLE.sub(fill, text)


def markdown(rows: Iterable[Row]) -> str | None:
    """A table with the keys of the first row as heads; None without rows."""
    known = list(rows)
    if not known:
        return None
    heads = list(known[0])
    return table(heads, [[row[head] for head in heads] for row in known])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first are aligned to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------------------- cells


def times(found: Sequence[float] | None, absent: str) -> str:
    """A ratio of times with its 95 % interval."""
    return absent if found is None else "{:.2f} ({:.2f} to {:.2f})".format(*found)


def megabytes(nbytes: float) -> str:
    """Memory."""
    return f"{nbytes / 1e6:,.0f} MB"


__all__ = [
    "CONSOLE",
    "DOCS",
    "MACHINE",
    "RESULTS",
    "Found",
    "Row",
    "markdown",
    "megabytes",
    "read",
    "refresh",
    "refreshed",
    "save",
    "saved",
    "table",
    "times",
]
