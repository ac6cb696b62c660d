"""`At`: a value in the JSON of a report together with its JSON pointer (RFC 6901)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from onnxslim.pages.blocks import Fact


@dataclass(frozen=True)
class At:
    """A value of plain data, and where it stands; a key that is not there gives None.

    Attributes:
        value: the data.
        pointer: JSON pointer of it in the whole.
    """

    value: Any
    pointer: str = ""

    def __getitem__(self, key: str | int) -> At:
        """The value under `key` of an object or array."""
        pointer = f"{self.pointer}/{_escaped(str(key))}"
        if isinstance(self.value, dict):
            return At(self.value.get(key), pointer)
        is_inside = isinstance(self.value, list) and isinstance(key, int) and key < len(self.value)
        return At(self.value[key] if is_inside else None, pointer)

    def __bool__(self) -> bool:
        """Whether there is anything: neither null nor empty."""
        return self.value is not None and self.value not in ("", [], {})

    def __iter__(self) -> Iterator[At]:
        """The items of an array; of anything else, none."""
        count = len(self.value) if isinstance(self.value, list) else 0
        return (self[at] for at in range(count))

    def items(self) -> Iterator[tuple[str, At]]:
        """Keys and values of an object; of anything else, none."""
        keys = self.value if isinstance(self.value, dict) else ()
        return ((str(key), self[key]) for key in keys)

    @property
    def number(self) -> float | None:
        """The value as a number; None where it was not measured."""
        is_plain = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        is_word = self.value in ("Infinity", "-Infinity", "NaN")
        return float(self.value) if is_plain or is_word else None

    @property
    def text(self) -> str:
        """The value as text; empty where there is none."""
        return "" if self.value is None else str(self.value)

    @property
    def fact(self) -> Fact:
        """A text of the JSON, as it stands."""
        return Fact(self.text, self.value, self.pointer)

    def figure(self, show: Callable[[Any], str]) -> Fact:
        """A number of the JSON as `show` writes it; empty where it was not measured."""
        number = self.number
        if number is None:
            return Fact("", None, self.pointer)
        shown = self.value if isinstance(self.value, int) else number
        return Fact(show(shown), self.value, self.pointer)


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
