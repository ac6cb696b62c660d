"""`SampleTrainer` answers what passes ask of training, on the samples of the user.

torch is imported when a model is to be trained, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxslim.analysis.output_kinds import OutputKinds, output_kinds
from onnxslim.errors import NotApplicable, UsageError
from onnxslim.io.model import Model
from onnxslim.runtime.samples.extras import TRAINING, import_extra
from onnxslim.runtime.samples.given import AnySource
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.session import open_session
from onnxslim.services.progress import Progress
from onnxslim.services.training import TrainingOutcome, TrainingRequest


class SampleTrainer:
    """Implements `onnxslim.services.training.Trainer` with torch.

    Args:
        source: of the samples, opened when first needed.
        seed: of the order of samples.
        threads: of torch and of onnxruntime; None: their own choice.
        kinds: of the outputs, by name; None: what the graph of the first teacher says.
        progress: what is being done, for whoever shows it.
    """

    def __init__(
        self,
        source: AnySource,
        *,
        seed: int = 0,
        threads: int | None = None,
        kinds: OutputKinds | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._source, self._seed, self._threads = source, seed, threads
        self._kinds, self._progress = kinds, progress or Progress()

    def train(
        self,
        student: Model,
        teachers: Sequence[Model],
        request: TrainingRequest,
        accepts: Callable[[Sequence[str]], bool],
    ) -> TrainingOutcome:
        """See `Trainer`."""
        import_extra(*TRAINING)
        from onnxslim.runtime.training.features import returning, shared_tensors
        from onnxslim.runtime.training.loop import TrainingRun
        from onnxslim.runtime.training.training_set import TrainingSet

        changed = [
            str(tensor.name)
            for tensor in (*student.graph.inputs, *student.graph.outputs)
            if getattr(tensor, "kept", None) or getattr(tensor, "renumbered", None)
        ]
        if changed:
            raise NotApplicable(
                f"`{changed[0]}` is shorter, or has other ids, than in the model before: put "
                "finetune in front of the step that changed it"
            )
        for teacher in teachers:
            _check_signature(student, teacher)
        with open_session(teachers[0], threads=self._threads) as session:
            samples = open_samples(self._source, session.inputs)
        kinds = self._kinds or output_kinds(teachers[0])
        features = shared_tensors((student, *teachers), request.features)
        data = TrainingSet(
            samples,
            [returning(teacher, features) for teacher in teachers],
            kinds=kinds,
            threads=self._threads,
            progress=self._progress,
        )
        if not request.augment:
            data.dismiss()
        try:
            run = TrainingRun(
                student,
                teachers[0],
                data,
                request,
                accepts,
                features,
                seed=self._seed,
                threads=self._threads,
                kinds=kinds,
                progress=self._progress,
            )
            return run.outcome()
        finally:
            data.close()


def _check_signature(student: Model, teacher: Model) -> None:
    names = [
        [
            [tensor.name for tensor in tensors]
            for tensors in (model.graph.inputs, model.graph.outputs)
        ]
        for model in (student, teacher)
    ]
    if names[0] == names[1]:
        return
    words = ("inputs", "outputs")
    word, own, other = next(
        (w, a, b) for w, a, b in zip(words, names[0], names[1], strict=True) if a != b
    )
    raise UsageError(
        f"A teacher has other {word} than the model: {', '.join(other)}, where the model has "
        f"{', '.join(own)}."
    )
