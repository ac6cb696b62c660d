"""File formats of `--report`: which suffix of a file's name is written by which function.

A new format of the report of a run is one function here and one line in `REPORTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from onnxslim.errors import UsageError
from onnxslim.render.json import Json, json_text, report_to_json
from onnxslim.report import Report

T = TypeVar("T")


@dataclass(frozen=True)
class Formats(Generic[T]):
    """How a `T` becomes the bytes of a file, by the suffix of the file's name.

    Attributes:
        writers: suffix, such as `.json`, -> function that makes the bytes.
        default: suffix that stands for all unknown ones; None: they are refused.
    """

    writers: Mapping[str, Callable[[T], bytes]]
    default: str | None = None

    @property
    def metavar(self) -> str:
        """The names of files as help shows them: `FILE.csv|FILE.svg`."""
        return "|".join(f"FILE{suffix}" for suffix in self.writers)

    def check(self, path: Path) -> None:
        """Refuse a file whose suffix has no writer.

        Raises:
            UsageError: listing the suffixes that have one.
        """
        if self.default is None and path.suffix not in self.writers:
            *most, last = self.writers
            listed = f"{', '.join(most)} or {last}" if most else last
            raise UsageError(f"--report must end in {listed}; got `{path}`.")

    def to_bytes(self, subject: T, path: Path) -> bytes:
        """The content of the file `path` that holds `subject`.

        Raises:
            UsageError: the suffix has no writer.
        """
        self.check(path)
        writer = self.writers.get(path.suffix) or self.writers[self.default or path.suffix]
        return writer(subject)


def _json_bytes(data: Json) -> bytes:
    return json_text(data).encode()


def _report_json(report: Report) -> bytes:
    return _json_bytes(report_to_json(report))


JSON: Formats[Json] = Formats({".json": _json_bytes}, default=".json")
"""Plain data, always as JSON."""

REPORTS: Formats[Report] = Formats({".json": _report_json}, default=".json")
"""The report of a run."""
