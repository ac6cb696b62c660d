"""`RunSettings`: the data, the seed, the threads, and what is measured while pipelines run.

Owns: the arguments that all functions of `onnxslim.api` share, and the services made from them.
The only module beside `api` that joins the core with `onnxslim.runtime`, which it imports when a
service is asked for, so that `import onnxslim` stays cheap.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from onnxslim.analysis.output_kinds import OutputKinds
from onnxslim.io.bounds import check_bounds
from onnxslim.io.check import admit
from onnxslim.pipeline.data_settings import DataSettings
from onnxslim.pipeline.passes import Context
from onnxslim.services.progress import Progress

if TYPE_CHECKING:
    from onnxslim.io.model import Model
    from onnxslim.runtime.measure.accuracy import EvaluationSource
    from onnxslim.runtime.measure.verify import RuntimeProver
    from onnxslim.runtime.samples.given import GivenData, SampleSource
    from onnxslim.runtime.session import Feeds


@dataclass(frozen=True)
class RunSettings:
    """How models are run, and what is measured of them.

    Attributes:
        calibration: unlabelled samples, for passes that use data and for verification; None: no
            pass gets data, and outputs are compared on seeded inputs.
        evaluation: labelled samples or a metric; None: accuracy is not measured.
        training: samples that models are trained on; None: those of `calibration`.
        data: how all of them are read, as the user said.
        declared: how pictures are read where `data` does not say.
        seed: seed of all randomness.
        threads: threads of onnxruntime; None: onnxruntime's own choice.
        input_shapes: shape by input name, for seeded inputs.
        output_kinds: what outputs are, by name, in place of what the graph says.
        verify: whether outputs are compared after every step.
        measure: whether models are timed.
        progress: what is being done, for whoever shows it.
        provider: short name of the execution provider on which models are verified and timed (see
            `runtime.providers`); None: the processor.
        cache: folder in which outcomes of steps are kept; None: all steps are run.
    """

    calibration: SampleSource | None = None
    evaluation: EvaluationSource | None = None
    training: SampleSource | None = None
    seed: int = 0
    threads: int | None = None
    input_shapes: Mapping[str, Sequence[int]] | None = None
    output_kinds: OutputKinds = field(default_factory=dict)
    verify: bool = True
    measure: bool = True
    progress: Progress = field(default_factory=Progress)
    data: DataSettings = field(default_factory=DataSettings)
    declared: DataSettings = field(default_factory=DataSettings)
    cache: Path | None = None
    provider: str | None = None

    @cached_property
    def given_calibration(self) -> GivenData | None:
        """The calibration data, read once for all who ask.

        Raises:
            UsageError: there is no such source, or a setting is for another kind of data.
        """
        return self._given[0]

    @cached_property
    def given_evaluation(self) -> GivenData | None:
        """The evaluation data, or the metric.

        Raises:
            UsageError: as above.
        """
        return self._given[1]

    @cached_property
    def given_training(self) -> GivenData | None:
        """The samples to train on: those of calibration where there are no others.

        Raises:
            UsageError: as above.
        """
        return self._given[2]

    @cached_property
    def _given(self) -> tuple[GivenData | None, GivenData | None, GivenData | None]:
        from onnxslim.runtime.measure.accuracy import labelled_source
        from onnxslim.runtime.samples.given import GivenData

        calibration = evaluation = None
        kinds = {}
        if self.calibration is not None:
            calibration = GivenData(self.calibration, self.data, self.declared)
            kinds[calibration.name] = calibration.kind
        if self.evaluation is not None:
            evaluation = calibration
            if not _is_same(self.calibration, self.evaluation):
                evaluation = GivenData(self.evaluation, self.data, self.declared)  # type: ignore[arg-type]
            assert evaluation is not None
            if labelled_source(evaluation) is not None:
                kinds[evaluation.name] = evaluation.kind
        training = calibration
        if self.training is not None and not _is_same(self.calibration, self.training):
            training = GivenData(self.training, self.data, self.declared)
            kinds[training.name] = training.kind
        self.data.check_used(kinds)
        return calibration, evaluation, training

    def admit(self, model: Model) -> list[str]:
        """Take a model that fits the machine, and that the ONNX checker or onnxruntime accepts.

        Comes before anything else is asked of the model, its shapes too.

        Returns:
            Notes for the report.

        Raises:
            ModelError: the model is refused.
        """
        check_bounds(model)
        return list(admit(model, self._load))

    def _load(self, model: Model) -> None:
        from onnxslim.runtime.session import open_session

        open_session(model, threads=self.threads).close()

    def data_sha256(self) -> dict[str, str]:
        """The sha256 of the data that were given, by option of the command."""
        from onnxslim.runtime.samples.digest import data_sha256

        given: dict[str, object] = {
            "calib": self.given_calibration,
            "eval": self.given_evaluation,
            "train": None if self.training is None else self.given_training,
            "tokenizer": self.data.tokenizer,
        }
        found = {name: data_sha256(data) for name, data in given.items() if data is not None}
        return {name: digest for name, digest in found.items() if digest is not None}

    def content_sha256(self) -> dict[str, str | None]:
        """As `data_sha256`, of samples as they come, and of what a metric says of itself.

        None for a metric that may measure anything, and for a function of unknown origin.

        Raises:
            UsageError: data cannot be read.
        """
        from onnxslim.runtime.measure.accuracy import metric_key
        from onnxslim.runtime.samples.digest import content_sha256, data_sha256

        found: dict[str, str | None] = {}
        if self.given_calibration is not None:
            found["calib"] = content_sha256(self.given_calibration)
        if self.given_evaluation is not None:
            is_metric, key = metric_key(self.given_evaluation)
            found["eval"] = key if is_metric else content_sha256(self.given_evaluation)
        if self.training is not None and self.given_training is not None:
            found["train"] = content_sha256(self.given_training)
        if self.data.tokenizer is not None:
            found["tokenizer"] = data_sha256(self.data.tokenizer)
        return found

    def layer_drifts(
        self, before: Model, after: Model, names: Sequence[str], samples: Sequence[Feeds]
    ) -> Mapping[str, float]:
        """SQNR in dB of tensors that both models compute, by name; see `probes.layer_drift`.

        Raises:
            RuntimeFailure: onnxruntime refuses a model whose inner tensors are returned.
        """
        from onnxslim.runtime.probes.layer_drift import layer_drifts

        with self.progress.step("comparing layers"):
            return layer_drifts((before, after), names, samples, self.threads)

    def prover(self) -> RuntimeProver:
        """A new prover, which has seen no model yet."""
        from onnxslim.runtime.measure.verify import RuntimeProver

        return RuntimeProver(
            calibration=self.given_calibration,
            evaluation=self.given_evaluation,
            seed=self.seed,
            threads=self.threads,
            provider=self.provider,
            input_shapes=self.input_shapes,
            output_kinds=self.output_kinds,
            latency=self.measure,
            verify=self.verify,
            progress=self.progress,
        )

    def context(self, prover: RuntimeProver | None = None) -> Context:
        """What passes may use.

        Args:
            prover: has begun on the model; measures accuracy, and gives the sample that models are
                timed on. None: passes get neither accuracy nor stopwatch.
        """
        from onnxslim.runtime.evaluate import evaluate
        from onnxslim.runtime.measure.accuracy import labelled_source
        from onnxslim.runtime.measure.stopwatch import SessionStopwatch
        from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
        from onnxslim.runtime.training.trainer import SampleTrainer

        calibration = seeded = accuracy = labelled = stopwatch = trainer = None
        kinds = None if prover is None else prover.output_kinds
        if self.given_calibration is not None:
            calibration = CalibrationRuns(
                self.given_calibration,
                seed=self.seed,
                threads=self.threads,
                kinds=kinds,
                progress=self.progress,
            )
            trainer = SampleTrainer(
                self.given_training or self.given_calibration,
                seed=self.seed,
                threads=self.threads,
                kinds=kinds,
                progress=self.progress,
                has_own_samples=self.given_training is not None
                and self.given_training is not self.given_calibration,
            )
        elif prover is not None and prover.probes:
            seeded = CalibrationRuns(
                prover.probes,
                seed=self.seed,
                threads=self.threads,
                kinds=kinds,
                progress=self.progress,
            )
        if prover is not None and self.given_evaluation is not None:
            accuracy = prover.accuracy
            source = labelled_source(self.given_evaluation)
            if source is not None:
                labelled = CalibrationRuns(
                    source, seed=self.seed, threads=self.threads, progress=self.progress
                )
        if prover is not None and self.measure and prover.sample is not None:
            stopwatch = SessionStopwatch(
                prover.sample, threads=self.threads, provider=self.provider, seed=self.seed
            )
        return Context(
            seed=self.seed,
            evaluate=evaluate,
            calibration=calibration,
            seeded=seeded,
            accuracy=accuracy,
            labelled=labelled,
            trainer=trainer,
            stopwatch=stopwatch,
            progress=self.progress,
            output_kinds=kinds or {},
            tokenizer=self.data.tokenizer,
        )


def provider_of(word: str | None) -> str | None:
    """The short name of the execution provider of the argument `provider`; None: the processor.

    Raises:
        UsageError: the installed onnxruntime does not have it.
    """
    if word is None:
        return None
    from onnxslim.runtime.providers import provider_named

    return provider_named(str(word))


def _is_same(calibration: object, evaluation: object) -> bool:
    """Whether the same data are given for both."""
    if isinstance(calibration, str | os.PathLike) and isinstance(evaluation, str | os.PathLike):
        return Path(calibration) == Path(evaluation)
    return calibration is evaluation
