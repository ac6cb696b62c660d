"""The processes of one search: their names, and which of them died."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

_OWN_BYTES: Final = 500 << 20  # of a process, whatever the model
_COPIES: Final = 8  # of the model, that the largest step holds at a time, with its samples
_MANY: Final = 1 << 16
_SILENT_SECONDS: Final = 3600.0
"""After so long a trial of a process on another machine counts as lost."""


def worker_name() -> str:
    """The name of this process: machine and number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(worker: str, seconds: float) -> bool:
    """Whether a process died during a trial.

    Args:
        worker: its name.
        seconds: since its trial began.
    """
    host, _, number = worker.rpartition(":")
    if host != socket.gethostname() or not number.isdigit():
        return seconds > _SILENT_SECONDS
    if int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(int(number))


def _is_zombie(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def room_for(model_bytes: int, available: int | None = None) -> int:
    """How many processes of one search the memory allows; at least one.

    Args:
        model_bytes: of the model's file.
        available: bytes of memory that are free; None: as the system says.
    """
    if available is None:
        available = _available_memory()
    if available is None:
        return _MANY
    return max(1, available // (_OWN_BYTES + _COPIES * model_bytes))


def _available_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def start(arguments: Sequence[str], count: int) -> list[subprocess.Popen[bytes]]:
    """Start the command `onnxslim` in more processes.

    Args:
        arguments: of the command.
        count: how many.
    """
    return [
        subprocess.Popen(
            [sys.executable, "-m", "onnxslim", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(count)
    ]
