"""The state of a training run in a file, from which the same run goes on to the same bytes.

The file holds tensors and numbers, and is read as such alone (`weights_only`). It is written beside
its place and renamed. It belongs to one run: the digest of what the run started from is in it, and
a file of another run is refused.
"""

from __future__ import annotations

import hashlib
import io
import pickle  # for the name of an error
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from onnxslim.errors import UsageError
from onnxslim.io import files
from onnxslim.io.staging import map_file, stage_file

_NUMBERS: Final = ("done", "epoch", "since_best", "attempt", "before", "best", "rate", "seconds")


@dataclass
class TrainingState:
    """How far a run has come.

    Attributes:
        done, epoch, since_best: steps and epochs so far, and epochs since the best one.
        attempt: how many rates were tried before, and brought nothing.
        before, best: the figure of what came in, and the best one.
        rate: the largest learning rate.
        seconds: on the clock.
        values: free tensors as they are.
        kept: as they were when the figure was best; (): that was at the beginning.
    """

    before: float
    best: float
    rate: float
    values: Sequence[Tensor] = ()
    kept: Sequence[Tensor] = ()
    done: int = 0
    epoch: int = 0
    since_best: int = 0
    attempt: int = 0
    seconds: float = 0.0


def digest_of(words: Iterable[str], tensors: Iterable[Tensor]) -> str:
    """The digest of what a run starts from."""
    found = hashlib.sha256("\n".join([*words, torch.__version__]).encode())
    for tensor in tensors:
        found.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return found.hexdigest()


def save(path: Path, digest: str, state: TrainingState, optimizer: torch.optim.Optimizer) -> None:
    """Write the state to `path`, all or nothing.

    Raises:
        UsageError: it cannot be written.
    """
    content = io.BytesIO()
    found = {name: getattr(state, name) for name in (*_NUMBERS, "values", "kept")}
    torch.save({"digest": digest, "optimizer": optimizer.state_dict(), **found}, content)
    with stage_file(path) as staged:
        staged.write([content.getbuffer()])
        staged.commit()


def load(path: Path, digest: str, optimizer: torch.optim.Optimizer) -> TrainingState | None:
    """The state in `path`, and the optimizer's put back; None where there is no such file.

    Raises:
        UsageError: the file is no checkpoint, or one of another run.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(io.BytesIO(map_file(path)), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"`{path}` is no checkpoint of a training run: {reason}.") from error
    if not isinstance(found, dict) or found.get("digest") != digest:
        raise UsageError(
            f"`{path}` is a checkpoint of another run: of other weights, samples or options. "
            "Remove it, or give another name."
        )
    optimizer.load_state_dict(found["optimizer"])
    return TrainingState(**{name: found[name] for name in (*_NUMBERS, "values", "kept")})


def remove(path: Path) -> None:
    """Remove a checkpoint that is no longer needed."""
    if path.exists():
        files.remove(path)
