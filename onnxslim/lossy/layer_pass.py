"""`LayerPass`: base of the passes that give weight layers new weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import weight_layers
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.problems import Problem, Problems, Schedule, Target
from onnxslim.pipeline.layer_filter import FilteredPass, only_option, skip_option
from onnxslim.pipeline.options import one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.trained_pass import TrainedPass


@dataclass(frozen=True)
class LayerPass(TrainedPass, FilteredPass):
    """A pass over weight layers: which layers, and what their new weights should reproduce.

    Attributes:
        max_inputs: layers with more inputs are solved without calibration samples, as memory would
            be short; None: there is no limit.
    """

    changes_weights: ClassVar[bool] = True
    max_inputs: ClassVar[int | None] = None

    only: tuple[str, ...] = only_option()
    skip: tuple[str, ...] = skip_option()
    aim: str = option(
        "original",
        one_of(*Target),
        "what a layer should return: what it did in the original model, or what its present weight "
        "gives on its present input",
    )
    sequential: bool = option(
        default=True,
        help="measure a layer's input after the layers before it have changed",
    )

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse patterns that match no layer; they are almost always typos.

        Raises:
            UsageError: naming the option, the pattern, and the closest names.
        """
        layers, declined = weight_layers(graph)
        # a layer stored as codes is no weight layer any more, but a pattern may still name it
        labels = [layer.name for layer in layers]
        self.check_patterns(context, labels, [skip.node for skip in declined])

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The weight layers."""
        return tuple(layer.name for layer in weight_layers(graph)[0])

    @property
    def schedule(self) -> Schedule:
        """When moments are taken, and what new weights should reproduce."""
        return Schedule(self.sequential, Target(self.aim))

    def problems(self, rewriter: Rewriter, context: Context) -> Problems:
        """The weights that the options select."""
        return Problems(rewriter, context, self.selection(context), self.schedule, self.max_inputs)


def error_words(problem: Problem, error: float) -> str:
    """The error that a new weight causes, in words; `error` as by `Problem.relative_error`."""
    notes = "".join(f"; {note}" for note in problem.notes)
    measure = "output error" if problem.has_data else "weight error"
    return f"relative {measure} {error:.2g}{notes}"


def share_of(part: int, whole: int) -> str:
    """`12.5 %`."""
    return f"{100 * part / whole:.3g} %"
