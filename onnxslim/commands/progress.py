"""Show progress on standard error: bars on a terminal, a line now and then elsewhere.

A thread of its own looks at `Progress.steps`, so that time goes on while one call runs long. It
looks a few times a second only: what it takes away from a model that is timed would be measured.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from onnxslim.commands.console import has_colors, log
from onnxslim.services.progress import Progress, Step

if TYPE_CHECKING:
    from rich.console import RenderableType

_BAR_WIDTH: Final = 24  # columns
_SHOW_CURSOR: Final = "\x1b[?25h"
_CLOCK_WIDTH: Final = len("1:02:03")
_DEEPEST: Final = 4  # steps inside one another that are shown; the innermost of more
_LINES_S: Final = 30.0  # seconds after which a line is due, where there are no bars
_VERBOSE_S: Final = 1.0  # the same, between lines about one step, with --verbose
_LOOKS_PER_S: Final = 2  # how often bars are drawn
_HINTED_S: Final = 2.0  # a step that takes less is not worth an estimate


@contextmanager
def progress(*, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Progress that is shown while the `with` block runs, and leaves nothing on a terminal.

    Args:
        quiet: show nothing.
        verbose: write a line for each step, on a terminal too.
    """
    if quiet:
        yield Progress()
    elif verbose:
        with _lines(Progress(_Teller())) as shown:
            yield shown
    elif sys.stderr.isatty() and has_colors():
        with _bars(Progress()) as shown:
            yield shown
    else:
        with _lines(Progress()) as shown:
            yield shown


# --------------------------------------------------------------------------- lines


class _Teller:
    """Writes a line when a step begins, and as it advances, but not each time."""

    def __init__(self) -> None:
        self._told: tuple[Step, ...] = ()
        self._at = 0.0

    def __call__(self, shown: Progress) -> None:
        """A step began, advanced or ended."""
        steps, now = shown.steps, time.monotonic()
        is_new = bool(set(steps) - set(self._told))
        if is_new or (steps == self._told and now - self._at > _VERBOSE_S):
            self._at = now
            log(str(shown))
        self._told = steps


@contextmanager
def _lines(shown: Progress) -> Iterator[Progress]:
    """A line for each half minute."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(_LINES_S):
            if shown.steps:
                log(line(shown))

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield shown
    finally:
        over.set()
        teller.join(1.0)


def line(shown: Progress) -> str:
    """All steps, how long they have taken, and what is left of the outermost that knows it."""
    steps = shown.steps
    left = next((left for step in steps if (left := step.left_s()) is not None), None)
    so_far = f"{_clock(steps[0].elapsed_s())} so far" if steps else ""
    about = [] if left is None else [f"about {_clock(left)} left"]
    return f"{shown} ({', '.join([so_far, *about])})"


def _clock(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# ---------------------------------------------------------------------------- bars


@contextmanager
def _bars(shown: Progress) -> Iterator[Progress]:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    live = Live(
        get_renderable=lambda: _drawn(shown, console.width),
        console=console,
        refresh_per_second=_LOOKS_PER_S,
        transient=True,
        redirect_stdout=False,
    )
    try:  # not `with`: Ctrl-C may come while the display starts, when the cursor is hidden already
        live.start()
        yield shown
    finally:
        try:
            live.stop()
        finally:  # by ourselves: rich may fail to, where Ctrl-C came while it started or wrote
            sys.stderr.write(_SHOW_CURSOR)
            sys.stderr.flush()


def _drawn(shown: Progress, width: int) -> RenderableType:
    """A row for each step: what is done, a bar, the time so far, and the time left."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from onnxslim.render.printable import printable

    rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
    rows.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    rows.add_column(width=min(_BAR_WIDTH, width // 4))
    rows.add_column(justify="right", no_wrap=True, min_width=_CLOCK_WIDTH)
    rows.add_column(justify="right", no_wrap=True, min_width=_CLOCK_WIDTH + len(" left"))
    for depth, step in enumerate(shown.steps[-_DEEPEST:]):
        share, left = step.share, step.left_s()
        is_long = step.elapsed_s() > _HINTED_S and left is not None
        rows.add_row(
            Text("  " * depth + printable(str(step))),
            "" if share is None else ProgressBar(total=1.0, completed=share),
            Text(_clock(step.elapsed_s())),
            Text(f"{_clock(left)} left" if is_long and left is not None else ""),
        )
    return rows
