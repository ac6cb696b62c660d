"""What ended a run: its exit code and its sentence, for standard error, reports and summaries."""

from __future__ import annotations

import signal
import traceback
from typing import Final

from onnxslim.errors import (
    OnnxslimError,
    PromiseBroken,
    RuntimeFailure,
    UsageError,
    is_out_of_memory,
)
from onnxslim.report import Failure

INTERRUPTED: Final = 130  # as shells count: 128 + SIGINT
TERMINATED: Final = 143  # 128 + SIGTERM
WORST_LAST: Final = (0, 4, 2, 3, 6, 5, INTERRUPTED, TERMINATED)
"""Exit codes from best to worst: with 4 an output was written; 5 is a bug."""

received: list[int] = []  # signals


def failure_of(error: BaseException, *, verbose: bool = False) -> Failure:
    """The exit code and the sentence of `error`; with `verbose`, tracebacks of bugs are printed."""
    if isinstance(error, KeyboardInterrupt):
        return _failure(error, INTERRUPTED, "interrupted.")
    if isinstance(error, OnnxslimError):
        if verbose and isinstance(error, PromiseBroken):  # a bug in a pass
            traceback.print_exception(error)
        return _failure(error, error.exit_code, str(error))
    if isinstance(error, SystemExit):  # SIGTERM, or click on a closed pipe
        code = error.code if isinstance(error.code, int) else 1
        return _failure(error, code, "terminated." if code == TERMINATED else "")
    if isinstance(error, MemoryError | OSError):
        return _of_system(error)
    return _of_bug(error, verbose)


def worst(codes: list[int]) -> int:
    """The exit code of several runs."""
    return max(codes, key=WORST_LAST.index, default=0)


def _of_system(error: MemoryError | OSError) -> Failure:
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        text = "there is not enough memory for this model on this machine."
        return _failure(error, RuntimeFailure.exit_code, text)
    place = f"`{error.filename}`" if error.filename else "a file"
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    text = f"the system refused {place}: {reason}. Check its disk and the process's limits."
    return _failure(error, UsageError.exit_code, text)


def _of_bug(error: BaseException, verbose: bool) -> Failure:
    if received:  # a C extension that was being imported made another error of the signal's
        is_interrupt = received[0] == signal.SIGINT
        code = INTERRUPTED if is_interrupt else TERMINATED
        return _failure(error, code, "interrupted." if is_interrupt else "terminated.")
    if is_out_of_memory(error):  # a library that could not be loaded
        return _of_system(MemoryError())
    if verbose:
        traceback.print_exception(error)
    advice = "" if verbose else " Run again with --verbose for the traceback."
    words = " ".join(str(error).split()) or "no message"
    text = f"internal error, which is a bug in onnxslim: {type(error).__name__}: {words}.{advice}"
    return _failure(error, PromiseBroken.exit_code, text)


def _failure(error: BaseException, exit_code: int, message: str) -> Failure:
    return Failure(type(error).__name__, exit_code, message)
