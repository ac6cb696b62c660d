"""Hold each step to what its passes promised, and find the pass to blame for a broken promise.

A preset is copied and verified once. Only when that fails is it replayed member by member, with a
check after each change, to name the one that broke it. So the guarantee is that of verifying after
every pass, at the price of verifying once.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxslim.errors import (
    ModelError,
    OnnxslimError,
    OptimiserFailure,
    OutOfMemory,
    PromiseBroken,
    RuntimeFailure,
)
from onnxslim.io import files
from onnxslim.io.check import check_model, signature
from onnxslim.io.model import Model
from onnxslim.io.staging import stage_file
from onnxslim.pipeline.execution import Executor, PassFailed, StepCandidate
from onnxslim.pipeline.passes import Pass, Preset
from onnxslim.pipeline.prover import Prover
from onnxslim.records import Fidelity
from onnxslim.report import Comparison


@dataclass(frozen=True)
class Verifier:
    """Runs steps and verifies the candidates.

    Attributes:
        executor: runs steps.
        prover: compares outputs; None: only the signature is checked.
        reproducers: folder for a model that shows a broken promise.
    """

    executor: Executor
    prover: Prover | None
    reproducers: Path

    def run(self, step: Pass, source: Model) -> StepCandidate:
        """Run `step` on a copy of `source`.

        Raises:
            PromiseBroken: a member failed; a reproducer was written.
        """
        try:
            return self.executor.run(step, source)
        except PassFailed as failure:
            raise self._broken(failure.culprit, str(failure), failure.before) from failure

    def verify(
        self,
        step: Pass,
        before: Model,
        candidate: StepCandidate,
        promised: Fidelity = Fidelity.EXACT,
    ) -> Comparison | None:
        """Hold a candidate against the promise of its changes.

        Args:
            step: what was run.
            before: the model that it was run on.
            candidate: the result.
            promised: the fidelity of the steps since the last commit, which outputs are compared
                with: the candidate is held to no stronger promise.

        Returns:
            What was measured; None without a prover.

        Raises:
            PromiseBroken: the pass to blame was found and a reproducer written.
            OptimiserFailure: the candidate is right, and onnxruntime's optimisations fail on it.
        """
        fidelity = max(promised, candidate.fidelity)
        reason, comparison = self._examine(before, candidate.model, fidelity, candidate.outputs)
        if reason is None:
            return comparison
        if isinstance(step, Preset):
            self._blame(step, before, promised)
        raise self._broken(step, reason, before)

    def _examine(
        self, before: Model, after: Model, fidelity: Fidelity, added: Sequence[str]
    ) -> tuple[str | None, Comparison | None]:
        """Why `after` breaks `fidelity` (None when it does not), and what was measured."""
        if signature(before) != signature(after, without=added):
            return "changed the inputs or outputs of the graph", None
        if self.prover is None:
            return None, None
        try:
            check_model(after, before)
            comparison = self.prover.compare(after, fidelity)
        except (OutOfMemory, OptimiserFailure):
            raise  # about the machine, or onnxruntime, not about the pass
        except (ModelError, RuntimeFailure) as error:
            return f"made a model that does not run: {error}", None
        return comparison.broken, comparison

    def _blame(self, preset: Preset, source: Model, fidelity: Fidelity) -> None:
        """Replay `preset` with a check after each change; raise for the first that fails.

        Raises:
            PromiseBroken: naming the member, with the model right before it as reproducer.
        """
        candidate = self.executor.copy(preset, source)
        for log, model in self.executor.turns(preset, candidate):
            good = model.clone()
            done = len(log.changes)
            self.executor.turn(log, model)
            if len(log.changes) == done:
                continue
            fidelity = max(fidelity, log.fidelity)
            reason, _ = self._examine(source, model, fidelity, candidate.outputs)
            if reason is not None:
                raise self._broken(log.member, reason, good)

    def _broken(self, culprit: Pass, reason: str, before: Model) -> PromiseBroken:
        """The error that names `culprit`, after writing a reproducer."""
        where = _write_reproducer(self.reproducers, culprit, before)
        return PromiseBroken(f"Pass `{culprit.name}` broke its promise: it {reason}. {where}")


def _write_reproducer(folder: Path, culprit: Pass, before: Model) -> str:
    """Save `before`; returns how to see the failure again, or why it could not be saved."""
    stem = before.origin.path.stem if before.origin.path else "model"
    target = folder / f"{stem}-before-{culprit.name}.onnx"
    command = shlex.join(["onnxslim", str(target), "--passes", str(culprit)])
    try:
        files.make_folders(folder)
        before.save(target)
        with stage_file(target.with_suffix(".txt")) as staged:
            staged.write([f"{command}\n".encode()])
            staged.commit()
    except (OSError, OnnxslimError) as error:
        return f"A reproducer could not be written: {error}"
    return f"This is a bug; please report it with `{target}`. To see it again: {command}"
