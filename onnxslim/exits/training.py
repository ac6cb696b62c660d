"""Heads, and with them the network, trained together; thresholds follow afterwards.

The loss is the sum over the network and all exits (Teerapittayanon et al. 2016, equation 2, and
Huang et al. 2018), each by its distance from the teacher's scores or from labels:

    L = L(y, teacher) + weight · Σ L(y_exit, teacher)

What is trained is the twin of the model (see `twin`), on samples of the half that chooses, or on
others; the half that confirms is never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxslim.constraints.read import read_constraints
from onnxslim.constraints.storing import store_values
from onnxslim.exits.candidates import ExitAnalysis, ExitCandidate
from onnxslim.exits.heads import calibrated, head_trials
from onnxslim.exits.thresholds import HeadTrial
from onnxslim.exits.twin import ExitTwin, twin_with
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.records import OutputKind
from onnxslim.services.training import Imitation, Trainer, TrainingOutcome, TrainingRequest

HALF = (0, 2)
"""The half of the samples that chooses, as `Calibration.parts(2)` deals them."""


@dataclass(frozen=True)
class ExitTraining:
    """How exits are trained.

    Attributes:
        trainer: trains.
        request: how.
        accepts: whether a weight learns, by the labels of the nodes that read it.
        joint: whether the network learns as well; else it is as it was.
        weight: of the loss of each exit, where that of the network counts once.
    """

    trainer: Trainer
    request: TrainingRequest
    accepts: Callable[[Sequence[str]], bool]
    joint: bool = True
    weight: float = 1.0

    def run(self, twin: ExitTwin, teachers: Sequence[Model], *, on_half: bool) -> TrainingOutcome:
        """New values of stored tensors.

        Args:
            twin: what learns.
            teachers: whose scores it learns from.
            on_half: whether the samples of calibration also confirm thresholds.

        Raises:
            NotApplicable: nothing learns.
        """
        of = twin.output
        request = replace(
            self.request,
            imitations=tuple(
                Imitation(name, of, OutputKind.CLASSES, self.weight) for name in twin.heads
            ),
            part=HALF if on_half and not self.trainer.has_own_samples else None,
        )
        if self.joint:
            return self.trainer.train(twin.model, teachers, request, self.accepts)
        own = {node_label(node) for node in twin.head_nodes()}

        def accepts(readers: Sequence[str]) -> bool:
            return own.issuperset(readers) and self.accepts(readers)

        return self.trainer.train(twin.of_heads(), teachers, request, accepts)


@dataclass(frozen=True)
class TrainedExits:
    """Exits with trained heads.

    Attributes:
        analysis: of the network as it is now.
        candidates: the same points with their new heads.
        rest: how the network answers samples that stay; None where it was not trained.
        network: new values of stored tensors of the network, by name.
        outcome: how training went.
    """

    analysis: ExitAnalysis
    candidates: tuple[ExitCandidate, ...]
    rest: HeadTrial | None
    network: dict[str, np.ndarray]
    outcome: TrainingOutcome


def trained_exits(
    analysis: ExitAnalysis, candidates: Sequence[ExitCandidate], how: ExitTraining
) -> TrainedExits:
    """The candidates with trained heads, each on top of the network as it is then.

    Raises:
        NotApplicable: nothing learns.
    """
    output, form = analysis.scores
    heads = [candidate.known.head for candidate in candidates]
    twin = twin_with(analysis.model, output.name, heads, form)
    found = how.run(twin, [analysis.model], on_half=analysis.labelled is None)
    if not found.values:
        return TrainedExits(analysis, tuple(candidates), None, {}, found)
    heads = [twin.head(number, found.values, head) for number, head in enumerate(heads)]
    own = {name for names in twin.weights for name in names.values()}
    network = {name: array for name, array in found.values.items() if name not in own}
    if network:
        analysis = replace(
            analysis, model=with_values(analysis.model, network), network=analysis.model
        )
    heads, trials = calibrated(analysis.distillation, heads, analysis.fit_to.halves()[1])
    if analysis.labelled is not None:
        trials = head_trials(analysis.distillation, heads, analysis.halves[0])
    fitted = [
        replace(candidate.known, head=head, trial=trial)
        for candidate, head, trial in zip(candidates, heads, trials.heads, strict=True)
    ]
    return TrainedExits(
        analysis,
        tuple(replace(c, fitted=new) for c, new in zip(candidates, fitted, strict=True)),
        trials.rest,
        network,
        found,
    )


def with_values(model: Model, values: Mapping[str, np.ndarray]) -> Model:
    """A copy of a model with new values of stored tensors."""
    copy = model.clone()
    rw = Rewriter(copy.graph)
    store_values(rw, read_constraints(copy.graph), values)
    rw.result()
    return copy
