"""What is being done: nested steps, each with a count of what is done of what.

    with progress.step("timing", len(placements), "placements") as step:
        for placement in placements:
            ...
            step.advance()

    for layer in progress.over("rounding", layers, "layers"):
        ...

Whoever shows progress either looks at `Progress.steps` whenever it likes, from any thread, or is
called at each change. Steps are named for users: "timing 12 of 40 placements".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


class TimeOver(BaseException):
    """Work went on for longer than it may, see `Progress.until`; no handler of failures sees it."""


@dataclass(eq=False)
class Step:
    """A part of the work, begun and not yet ended.

    Attributes:
        name: what is done, such as `timing`.
        total: how many things it is done to; None where nobody knows.
        unit: what these things are, in the plural.
        is_even: whether the things take alike times, so that the time left can be estimated.
        done: how many are done.
        started, advanced: when it began, and when it last advanced; seconds of `time.monotonic`.
    """

    name: str
    total: int | None = None
    unit: str = ""
    is_even: bool = True
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    advanced: float = field(default_factory=time.monotonic)
    _changed: Callable[[], None] = field(default=lambda: None, repr=False)

    def advance(self, count: int = 1) -> None:
        """Note that `count` more things are done."""
        self.done += count
        self.advanced = time.monotonic()
        self._changed()

    @property
    def share(self) -> float | None:
        """The share that is done, in [0, 1]; None where the total is not known."""
        return None if not self.total else min(self.done / self.total, 1.0)

    def elapsed_s(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started

    def left_s(self) -> float | None:
        """Seconds that the rest will take, at the pace so far; None where that is not known."""
        if self.total is None or not self.done or not self.is_even:
            return None
        pace = (self.advanced - self.started) / self.done
        since = time.monotonic() - self.advanced
        return max(pace * (self.total - self.done) - since, 0.0)

    def __str__(self) -> str:
        """`timing 12 of 40 placements`: what is being done now."""
        unit = f" {self.unit}" if self.unit else ""
        if self.total is None:
            return f"{self.name}, {self.done:,}{unit} done" if self.done else self.name
        return f"{self.name} {min(self.done + 1, self.total):,} of {self.total:,}{unit}"


class Progress:
    """The steps that are under way.

    Args:
        listener: is called with this object when a step begins, advances or ends.
    """

    def __init__(self, listener: Callable[[Progress], None] | None = None) -> None:
        self._listener = listener
        self._open: list[Step] = []
        self._limit: float | None = None

    @classmethod
    def of(cls, shown: Progress | Callable[[Progress], None] | None) -> Progress:
        """`shown` itself, or progress that tells it; None: nobody looks."""
        return shown if isinstance(shown, Progress) else cls(shown)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that are under way, the outermost first."""
        return tuple(self._open)

    @contextmanager
    def step(
        self, name: str, total: int | None = None, unit: str = "", *, is_even: bool = True
    ) -> Iterator[Step]:
        """A step, for as long as the `with` block takes; see `Step` for the arguments."""
        step = Step(name, total, unit, is_even, _changed=self._tell)
        self._open.append(step)
        self._tell()
        try:
            yield step
        finally:
            self._open.remove(step)
            self._tell()

    def over(
        self,
        name: str,
        items: Iterable[T],
        unit: str,
        *,
        total: int | None = None,
        is_even: bool = True,
    ) -> Iterator[T]:
        """The items, as a step that advances by each; `total` where `items` have no length."""
        count = len(items) if total is None and isinstance(items, Sized) else total
        with self.step(name, count, unit, is_even=is_even) as step:
            for item in items:
                yield item
                del item  # it may be large: nothing may hold on to it
                step.advance()

    @contextmanager
    def until(self, moment: float) -> Iterator[None]:
        """End the work inside when a step begins, advances or ends after a moment.

        Args:
            moment: in seconds of `time.monotonic`.

        Raises:
            TimeOver: the moment has passed.
        """
        before, self._limit = self._limit, moment
        try:
            yield
        finally:
            self._limit = before

    def __str__(self) -> str:
        """All steps in one line, the outermost first."""
        return ": ".join(map(str, self.steps))

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener(self)
        if self._limit is not None and time.monotonic() > self._limit:
            raise TimeOver
