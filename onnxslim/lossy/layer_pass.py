"""`LayerPass`: base of the passes that give weight layers new weights.

It holds the options that all of them have, and what they say of a layer in the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import weight_layers
from onnxslim.errors import NotApplicable
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.problems import LayerFilter, Problem, Problems, Schedule, Target
from onnxslim.pipeline.options import Assigned, one_of, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.suggest import did_you_mean


@dataclass(frozen=True)
class LayerPass(Pass):
    """A pass over weight layers, with the options that say which, and what they aim at.

    Attributes:
        max_inputs: layers with more inputs are solved without calibration samples, as memory would
            be short; None: there is no limit.
    """

    max_inputs: ClassVar[int | None] = None

    only: tuple[str, ...] = option((), help="names of the only layers to change; `*` and `?` match")
    skip: tuple[str, ...] = option((), help="names of layers to leave alone; `*` and `?` match")
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
        """Refuse patterns that say nothing of this model: they are hardly ever meant so.

        Raises:
            NotApplicable: naming the option, the pattern, and the layer that may be meant.
        """
        layers, declined = weight_layers(graph)
        # what is stored as codes already is no weight layer any more, but may well be named
        check_patterns(self, [layer.name for layer in layers], [skip.node for skip in declined])

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The weight layers."""
        return tuple(layer.name for layer in weight_layers(graph)[0])

    @property
    def schedule(self) -> Schedule:
        """How moments are taken."""
        return Schedule(self.sequential, Target(self.aim))

    def problems(self, rewriter: Rewriter, context: Context) -> Problems:
        """The weights that the options select."""
        chosen = LayerFilter(self.only, self.skip)
        return Problems(rewriter, context, chosen, self.schedule, self.max_inputs)


def check_patterns(owner: Pass, names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Refuse patterns that say nothing of this model.

    Args:
        owner: with `only` and `skip`, and options of the form PATTERN=NUMBER.
        names: what its patterns are about.
        others: more names that are no mistake.

    Raises:
        NotApplicable: naming the option, the pattern, and the name that may be meant.
    """
    for option_name, pattern in _patterns(owner):
        known = (*names, *others)
        if pattern not in known and not any(fnmatchcase(name, pattern) for name in known):
            raise NotApplicable(
                f"option `{option_name}` names `{pattern}`, which no layer matches."
                f"{did_you_mean(pattern.strip('*?'), names)}"
            )


def _patterns(owner: Pass) -> Iterator[tuple[str, str]]:
    """The patterns on names of layers, each with its option."""
    for spec in owner.options():
        value = getattr(owner, spec.field)
        if spec.field in ("only", "skip"):
            yield from ((spec.name, pattern) for pattern in value)
        elif isinstance(spec.constraint, Assigned):
            yield from ((spec.name, spec.constraint.split(entry)[0]) for entry in value)


def error_words(problem: Problem, error: float) -> str:
    """What a new weight does to a layer, in words; `error` as by `Problem.relative_error`."""
    notes = "".join(f"; {note}" for note in problem.notes)
    measure = "output error" if problem.has_data else "weight error"
    return f"relative {measure} {error:.2g}{notes}"


def share_of(part: int, whole: int) -> str:
    """`12.5 %`."""
    return f"{100 * part / whole:.3g} %"


__all__ = ["LayerPass", "check_patterns", "error_words", "share_of"]
