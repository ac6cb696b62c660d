"""Every error that a user of onnxslim can meet, and the exit code it becomes.

    OnnxslimError
    ├── UsageError       2  bad pipeline text, option, missing file, output that cannot be written
    ├── ModelError       3  the model is invalid, corrupt or not supported
    ├── FloorMissed      4  a pass went below the user's floor and was rolled back
    ├── TargetMissed     4  the target does not take all of the file that was written
    ├── StepIdle         4  --strict: a step was left out or changed nothing
    ├── ClaimBroken      4  `onnxslim check`: a report claims what does not hold
    ├── PromiseBroken    5  a pass broke its own promise: a bug, with a reproducer
    └── RuntimeFailure   6  onnxruntime refused a model or failed on it
        ├── OutOfMemory  6  it asked for more memory than there is
        ├── OptimiserFailure  6  its optimisations fail on a model that runs without them
        └── RunStopped   6  a run took longer than it may

`NotApplicable` is not a failure: a pass raises it from `requires` to decline the whole model.
A message says where, what was expected, what was found, and what to do next.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    import onnx

    from onnxslim.report import Report


class BestModel(Protocol):
    """A model that can be saved: `onnxslim.Model`, which this module stands below."""

    def save(self, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
        """Write it to a file."""

    def to_bytes(self) -> bytes:
        """The bytes of that file."""

    def to_proto(self) -> onnx.ModelProto:
        """It as a message of the onnx package."""


class OnnxslimError(Exception):
    """Base of all errors that are raised on purpose; the command returns `exit_code`."""

    exit_code: ClassVar[int] = 1


class UsageError(OnnxslimError):
    """The request cannot be carried out as it is written."""

    exit_code = 2


class ModelError(OnnxslimError):
    """The model is invalid, corrupt or not supported."""

    exit_code = 3


class FloorMissed(OnnxslimError):
    """A pass was rolled back because its result went below a floor of the user.

    Attributes:
        report: report of the run; its output was written without that pass.
        model: the best model that holds the floor, which is what was written.
    """

    exit_code = 4
    report: Report | None = None
    model: BestModel | None = None


class TargetMissed(OnnxslimError):
    """The engine that the file is for does not take all of it; the output was written.

    Attributes:
        report: report of the run.
        model: what was written.
    """

    exit_code = 4
    report: Report | None = None
    model: BestModel | None = None


class StepIdle(OnnxslimError):
    """A step that was asked for was left out, or changed nothing; the output was written."""

    exit_code = 4


class ClaimBroken(OnnxslimError):
    """What a report claims of its files does not hold, or not any more."""

    exit_code = 4


class PromiseBroken(OnnxslimError):
    """A pass changed outputs by more than its fidelity allows, or failed: a bug in the pass."""

    exit_code = 5


class RuntimeFailure(OnnxslimError):
    """onnxruntime refused to load a model, or failed while running it."""

    exit_code = 6


class OutOfMemory(RuntimeFailure):
    """onnxruntime asked for more memory than there is, which says nothing about the model."""


class OptimiserFailure(RuntimeFailure):
    """onnxruntime's own optimisations fail on a model that it runs as it stands."""


class RunStopped(RuntimeFailure):
    """A run took longer than it may, and was stopped."""


_MEMORY: Final = re.compile(
    r"bad.?alloc|failed to allocate|allocation failed|out of memory|"
    r"cannot allocate memory|failed to map segment",
    re.I,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or a library found no memory; libraries raise many kinds of errors for it."""
    return isinstance(error, MemoryError) or bool(_MEMORY.search(str(error)[:4000]))


class NotApplicable(OnnxslimError):
    """Raised by `Pass.requires`: the pass has nothing to do on this model; the message says why."""
