"""What a report tells of both models, part by part: layers, samples, energy, outlines of graphs.

Owns: which runs are made for it, and how many samples they take. Layers are timed by onnxruntime's
profile, where models are timed at all. What cannot be measured is None, and a note says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from onnxslim.analysis.energy import estimate_energy
from onnxslim.analysis.graph_outline import graph_outline
from onnxslim.details import Details, ModelDetails, SampleDrift
from onnxslim.errors import RuntimeFailure
from onnxslim.graph.inlining import inline_functions
from onnxslim.graph.local_functions import foreign_calls
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes, with_input_shapes
from onnxslim.run.settings import RunSettings
from onnxslim.services.stopwatch import Kernel, Stopwatch
from onnxslim.tools.layer_figures import layer_figures, layer_twins, paired_layers

_ON_PROCESSOR: Final = "Times of layers are those of the processor, not of the provider"
_WORST: Final = 10  # samples that are named
_LAYER_RUNS: Final = 4  # runs on which the outputs of layers are compared
_MOST_LAYERS: Final = 400  # whose outputs are compared: those of a run are in memory at once


class PartsProver(Protocol):
    """Runs models to tell samples and layers apart; `runtime.measure.verify` answers."""

    @property
    def sample(self) -> Mapping[str, np.ndarray] | None:
        """The sample that models are timed on; None where no inputs are known."""

    def sample_drifts(self, candidate: Model) -> tuple[SampleDrift, ...]:
        """How far outputs on each sample are from the original's; () where not compared."""

    def some_probes(self, most: int) -> tuple[Sequence[Mapping[str, np.ndarray]], int]:
        """Inputs of at most so many runs on which outputs are compared; samples in them."""


@dataclass
class DetailSurvey:
    """Looks at a model before and after.

    Attributes:
        prover: has begun on the model before; None where nothing runs.
        stopwatch: None where models are not timed.
        settings: how models run.
        notes: what could not be measured, a sentence each.
    """

    prover: PartsProver | None
    stopwatch: Stopwatch | None
    settings: RunSettings
    notes: list[str] = field(default_factory=list)

    def details(self, before: Model, after: Model) -> Details:
        """Both models, part by part; `after` may be `before` itself."""
        with self.settings.progress.step("looking at layers"):
            first = self._sized(before)
            figures = layer_figures(first, self._kernels(before))
            if after is before:
                second, later = first, figures
            else:
                second = self._sized(after)
                later = layer_figures(second, self._kernels(after))
            twins = layer_twins(first, second, (figures, later))
            pairs = paired_layers(first, second, (figures, later), twins)
            found = Details(
                _model_details(first, second, is_after=False),
                _model_details(second, first, is_after=True),
                pairs,
            )
        if after is before or self.prover is None:
            return found
        samples = self._samples(after)
        worst = tuple(sorted(samples, key=lambda drift: drift.sqnr_db)[:_WORST])
        found = replace(found, samples=worst, samples_compared=len(samples))
        return self._layer_drift(found, before, after)

    def _sized(self, model: Model) -> Model:
        """A copy with shapes: those of the sample that is timed, where there is one."""
        sample = None if self.prover is None else self.prover.sample
        shapes = {} if sample is None else {name: a.shape for name, a in sample.items()}
        copy = with_input_shapes(model, shapes)
        if foreign_calls(copy.graph):
            inline_functions(copy.graph)
            copy.has_shapes = False
            infer_shapes(copy)
        known: Mapping[str, tuple[int, ...]] = {}
        try:
            known = known if self.stopwatch is None else self.stopwatch.shapes(model)
        except RuntimeFailure as error:
            self._note("Some sizes", error)
        for node in copy.graph.nodes:
            for tensor in node.outputs:
                if tensor.name in known:
                    tensor.shape = list(known[tensor.name])
        return copy

    def _kernels(self, model: Model) -> Sequence[Kernel] | None:
        if self.stopwatch is None:
            return None
        provider = self.settings.provider
        if provider is not None and (note := f"{_ON_PROCESSOR} {provider}.") not in self.notes:
            self.notes.append(note)
        try:
            return self.stopwatch.profile(model)
        except RuntimeFailure as error:
            self._note("Times of layers", error)
            return None

    def _samples(self, after: Model) -> tuple[SampleDrift, ...]:
        assert self.prover is not None
        try:
            return self.prover.sample_drifts(after)
        except RuntimeFailure as error:
            self._note("The drift of each sample", error)
            return ()

    def _layer_drift(self, found: Details, before: Model, after: Model) -> Details:
        """With the SQNR of outputs of layers that both models have under one name."""
        assert self.prover is not None
        names = [pair.name for pair in found.layers if pair.before is not None]
        samples, count = self.prover.some_probes(_LAYER_RUNS)
        if not samples or not 0 < len(names) <= _MOST_LAYERS:
            return found
        try:
            sqnr = self.settings.layer_drifts(before, after, names, samples)
        except RuntimeFailure as error:
            self._note("The drift of each layer", error)
            return found
        layers = tuple(replace(pair, sqnr_db=sqnr.get(pair.name)) for pair in found.layers)
        return replace(found, layers=layers, layers_on=f"{count} sample{'s' if count > 1 else ''}")

    def _note(self, what: str, error: RuntimeFailure) -> None:
        note = f"{what} could not be measured: {error}"
        if note not in self.notes:
            self.notes.append(note)


def _model_details(mine: Model, other: Model, *, is_after: bool) -> ModelDetails:
    outline = graph_outline(mine.graph, other.graph, is_after=is_after)
    return ModelDetails(estimate_energy(mine.graph), outline)
