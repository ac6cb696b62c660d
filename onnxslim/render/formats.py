"""File formats of `--report`: which suffix of a file's name is written by which function.

A new format of the report of a run is one function here and one line in `REPORTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from onnxslim.errors import UsageError
from onnxslim.render.json import Json, json_text, report_to_json
from onnxslim.report import Report
from onnxslim.version import VERSION

T = TypeVar("T")


@dataclass(frozen=True)
class Formats(Generic[T]):
    """How a `T` becomes the bytes of a file, by the suffix of the file's name.

    Attributes:
        writers: suffix, such as `.json`, -> function that makes the bytes.
        default: suffix that stands for all unknown ones; None: they are refused.
        signs: suffix -> bytes near the beginning of each file of onnxslim's that has it.
    """

    writers: Mapping[str, Callable[[T], bytes]]
    default: str | None = None
    signs: Mapping[str, bytes] = field(default_factory=dict)

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

    def wrote(self, path: Path, head: bytes) -> bool:
        """Whether a file named `path` that begins with `head` was written in one of the formats."""
        sign = self.signs.get(path.suffix) or self.signs.get(self.default or path.suffix)
        return sign is not None and sign in head

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


_JSON_SIGN = b'\n  "onnxslim": "'  # a key of the whole, on a line of its own

JSON: Formats[Json] = Formats({".json": _json_bytes}, default=".json", signs={".json": _JSON_SIGN})
"""Plain data, always as JSON."""


def _several_json(reports: Sequence[Json]) -> bytes:
    return _json_bytes({"onnxslim": VERSION, "models": list(reports)})


REPORTS_OF_SEVERAL: Formats[Sequence[Json]] = Formats(
    {".json": _several_json}, default=".json", signs={".json": _JSON_SIGN}
)
"""The reports of several models, each as JSON."""

REPORTS: Formats[Report] = Formats(
    {".json": _report_json}, default=".json", signs={".json": _JSON_SIGN}
)
"""The report of a run."""
