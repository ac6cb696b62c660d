"""Do a task in a process of its own, with limits on time and memory, that may die of it."""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

SECONDS: Final = 60
MEMORY_BYTES: Final = 4 << 30
_STAGE_BYTES: Final = 400

Stage = Callable[[str], None]
Task = Callable[[Any, Path, Stage], Any]


class Died(Exception):
    """The process did not come back.

    Attributes:
        stage: what it was doing.
    """

    def __init__(self, why: str, stage: str) -> None:
        super().__init__(why)
        self.stage = stage


def _answer(task: Task, pipe: Connection, stage: Any) -> None:
    """Do tasks until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY_BYTES, 2 * MEMORY_BYTES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # onnxruntime writes there by itself

    def tell(text: str) -> None:
        stage.value = text.encode()[: _STAGE_BYTES - 1]

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        while True:
            try:
                item = pipe.recv()
            except EOFError:
                return
            tell("")
            result = task(item, Path(folder), tell)
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            pipe.send((result, peak))


class Worker:
    """A process at a time, made anew when it dies or hangs.

    Args:
        task: a function of a module, which gets an item, a folder to work in, and whom to tell what
            it is about to do.
        seconds: how long one item may take.
    """

    def __init__(self, task: Task, seconds: float = SECONDS) -> None:
        self._task, self._seconds = task, seconds
        self._context = mp.get_context("spawn")
        self._stage = self._context.Array("c", _STAGE_BYTES)
        self._process: mp.process.BaseProcess | None = None

    def do(self, item: Any) -> tuple[Any, int]:
        """The result, and the most memory that the process held so far, in bytes.

        Raises:
            Died: the process ended, or took too long and was ended.
        """
        if self._process is None or not self._process.is_alive():
            self._pipe, theirs = self._context.Pipe()
            arguments = (self._task, theirs, self._stage)
            self._process = self._context.Process(target=_answer, args=arguments, daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._pipe.send(item)
            if not self._pipe.poll(self._seconds):
                self.stop()
                raise Died(f"no answer within {self._seconds:g} s", self._stage.value.decode())
            result, peak = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(5)
            why = f"the process died with exit code {self._process.exitcode}"
            raise Died(why, self._stage.value.decode()) from None
        if peak > MEMORY_BYTES // 4:
            self.stop()  # memory once taken is not given back: the next task gets a new process
        return result, peak

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
