"""The questions that the manager asks about models; `onnxslim.runtime` answers them.

The core does not import onnxruntime: the manager gets a `Prover` that was made in `runtime`, or
none when the user turned verification and timing off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from onnxslim.io.model import Model
from onnxslim.pipeline.floors import JudgedBy
from onnxslim.records import Fidelity
from onnxslim.report import Comparison, LatencyPair


class Prover(Protocol):
    """Runs models to measure what a step did.

    It compares with two baselines: the original model and the last committed one.
    """

    verified_on: str
    """The inputs that outputs are compared on, such as `calibration: 256 samples`, or why outputs
    cannot be compared."""

    notes: list[str]
    """Facts about the verification that the user should know."""

    @property
    def timed_on(self) -> str | None:
        """The inputs that models are timed on, with their sizes; None where nothing is timed."""

    @property
    def judged_by(self) -> JudgedBy:
        """What outputs are judged by."""

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

    def why_not_same(self, before: Model, after: Model) -> str | None:
        """What keeps `after` from taking the place of `before` losslessly; None: nothing does.

        The baselines stay as they are. The words follow "it", as in "changed the output y".
        """

    def commit(self, model: Model) -> None:
        """Make `model` the new previous baseline; outputs that are known of it are reused.

        The manager commits each candidate that it keeps; the original is committed to start again.
        """

    def time(self, before: Model, after: Model) -> LatencyPair | None:
        """Latency of two models in turn; None when latency is not to be measured."""

    def accuracy(self, model: Model) -> float | None:
        """Top-1 accuracy, or the metric of the user, in [0, 1]; None without evaluation data."""

    def check_file(self, path: Path, model: Model) -> None:
        """Load the file at `path` and check that it returns what `model` returned.

        Raises:
            RuntimeFailure: the file does not load, or returns something else.
        """
