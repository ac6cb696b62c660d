"""The seam between the manager and onnxruntime: what the manager asks, `runtime` answers.

The core imports no onnxruntime; `api.py` gives the manager a `Prover` made in `runtime`, or none
when the user turned verification off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from onnxslim.io.model import Model
from onnxslim.records import Fidelity
from onnxslim.report import Comparison, LatencyPair


class Prover(Protocol):
    """Runs models to find out what a step did. Baselines: the original, the last committed."""

    verified_on: str
    """What outputs are compared on, e.g. `calibration: 256 samples`; why not, when they cannot."""

    notes: list[str]
    """Things the user should know about how it was verified."""

    def begin(self, original: Model) -> bool:
        """Find inputs that `original` accepts and run it on them.

        Returns:
            Whether outputs can be compared; when not, `verified_on` says why.

        Raises:
            RuntimeFailure: onnxruntime refuses the original model.
        """

    def compare(self, candidate: Model, fidelity: Fidelity) -> Comparison:
        """Run `candidate` on the same inputs and hold it against what `fidelity` promises.

        Raises:
            RuntimeFailure: onnxruntime refuses it or fails on it.
        """

    def commit(self, model: Model) -> None:
        """Make `model` the new previous baseline; outputs that are known of it are reused.

        The manager commits each candidate that it keeps; the original is committed to start again.
        """

    def time(self, before: Model, after: Model) -> LatencyPair | None:
        """Latency of two models in turn; None when latency is not to be measured."""

    def accuracy(self, model: Model) -> float | None:
        """Top-1 or the user's metric on the evaluation data; None without such data."""

    def check_file(self, path: Path, model: Model) -> None:
        """Load the file at `path` and see that it gives what `model` gave.

        Raises:
            RuntimeFailure: it does not.
        """
