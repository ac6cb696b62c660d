"""`LayerPass`: base of the passes that give weight layers new weights.

It holds the options that all of them have, and what they say of a layer in the report.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.contract import Context, Pass
from onnxslim.objective.problems import Aim, Problem, Problems, Schedule, Selection
from onnxslim.options import Assigned, Interval, one_of, option
from onnxslim.rewrite import Rewriter


@dataclass(frozen=True)
class LayerPass(Pass):
    """A pass over weight layers, with the options that say which, and what they aim at."""

    only: tuple[str, ...] = option((), help="names of the only layers to change; `*` and `?` match")
    skip: tuple[str, ...] = option((), help="names of layers to leave alone; `*` and `?` match")
    aim: str = option(
        "original",
        one_of(*Aim),
        "what a layer should return: what it did in the original model, or what its present weight "
        "gives on its present input",
    )
    sequential: bool = option(
        default=True,
        help="measure a layer's input after the layers before it have changed",
    )

    @property
    def schedule(self) -> Schedule:
        """How moments are taken."""
        return Schedule(self.sequential, Aim(self.aim))

    def problems(self, rewriter: Rewriter, context: Context) -> Problems:
        """The weights that the options select."""
        return Problems(rewriter, context, Selection(self.only, self.skip), self.schedule)


def error_words(problem: Problem, error: float) -> str:
    """What a new weight does to a layer, in words; `error` as by `Problem.relative_error`."""
    notes = "".join(f"; {note}" for note in problem.notes)
    measure = "output error" if problem.has_data else "weight error"
    return f"relative {measure} {error:.2g}{notes}"


def assigned_number(
    values: Interval, entries: tuple[str, ...], name: str, default: float, *, whole: bool = False
) -> float:
    """What `PATTERN=NUMBER` entries say of a layer, `default` where they say nothing."""
    return Assigned(values, whole).find(entries, name, default)


def share_of(part: int, whole: int) -> str:
    """`12.5 %`."""
    return f"{100 * part / whole:.3g} %"


__all__ = ["LayerPass", "assigned_number", "error_words", "share_of"]
