"""File formats of `--report`: which suffix of a file's name is written by which function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

from onnxslim.errors import UsageError
from onnxslim.render.json import Json, json_text

S = TypeVar("S")
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

    def of(self, made: Callable[[S], T]) -> Formats[S]:
        """The same formats for an `S`, of which `made` makes a `T`."""
        writers = {
            suffix: lambda subject, write=write: write(made(subject))
            for suffix, write in self.writers.items()
        }
        return Formats(writers, self.default, self.signs)


def json_bytes(data: Json) -> bytes:
    """Plain data as the content of a JSON file."""
    return json_text(data).encode()


JSON_SIGN: Final = b'\n  "onnxslim": "'  # a key of the whole, on a line of its own
"""Stands near the beginning of each JSON file of onnxslim's."""

JSON: Formats[Json] = Formats({".json": json_bytes}, default=".json", signs={".json": JSON_SIGN})
"""Plain data, always as JSON."""
