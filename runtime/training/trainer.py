"""`SampleTrainer` answers what passes ask of training, on the samples of the user.

torch is imported when a model is to be trained, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxslim.analysis.output_kinds import OutputKinds, output_kinds
from onnxslim.errors import NotApplicable, UsageError
from onnxslim.io.model import Model
from onnxslim.runtime.samples.extras import TRAINING, import_extra
from onnxslim.runtime.samples.given import AnySource
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.samples.subsets import chosen, dealt
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
        has_own_samples: see `Trainer`.
    """

    def __init__(
        self,
        source: AnySource,
        *,
        seed: int = 0,
        threads: int | None = None,
        kinds: OutputKinds | None = None,
        progress: Progress | None = None,
        has_own_samples: bool = False,
    ) -> None:
        self.has_own_samples = has_own_samples
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
            _check_signature(student, teacher, {item.name for item in request.imitations})
        with open_session(teachers[0], threads=self._threads) as session:
            samples = open_samples(self._source, session.inputs)
        if request.part is not None:
            samples = chosen(samples, dealt(*request.part))
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

    def effects(self, model: Model, axes: Mapping[str, int], most: int) -> Mapping[str, np.ndarray]:
        """See `Trainer`."""
        import_extra(*TRAINING)
        from onnxslim.runtime.training.effects import channel_effects

        with open_session(model, threads=self._threads) as session:
            samples = open_samples(self._source, session.inputs)
        kinds = self._kinds or output_kinds(model)
        return channel_effects(
            model, axes, samples, kinds, most=most, seed=self._seed, progress=self._progress
        )


def _check_signature(student: Model, teacher: Model, own: set[str]) -> None:
    """Refuse a teacher with other inputs or outputs; those of `own` the student alone may have.

    A student of which only such outputs learn need not return the teacher's.

    Raises:
        UsageError: naming them.
    """
    graphs = student.graph, teacher.graph
    first, second = ([tensor.name for tensor in graph.inputs] for graph in graphs)
    word = "inputs"
    if first == second:
        word = "outputs"
        first, second = ([tensor.name for tensor in graph.outputs] for graph in graphs)
        first = [name for name in first if name not in own]
        if first == second or (own and not first):
            return
    raise UsageError(
        f"A teacher has other {word} than the model: {', '.join(second)}, where the model has "
        f"{', '.join(first)}."
    )
