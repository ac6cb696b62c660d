"""`TrainedPass`: base of passes that can let the model learn after what they did to it.

    prune-weights:ratio=0.95:finetune=6:steps=3

runs prune-weights and finetune in turn, three times: pruned by a third of the way, trained for a
share of the epochs, and so on. It is one step: kept or dropped as a whole, by what the floors and
the size say of its result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, TypeVar

from onnxslim.errors import UsageError
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.options import Interval, option
from onnxslim.pipeline.passes import Pass

P = TypeVar("P", bound="TrainedPass")
EPOCHS: Final = Interval(0, 10_000, open_left=True, true=3.0)
"""Epochs of training; with `true` as many as the pass finetune trains by itself."""
_FINETUNE: Final = "finetune"
_CHECKPOINT: Final = "checkpoint"  # an option of it
_LAST: Final = 2  # the last stage trains so many times as long as each of the others


def cubic(done: float) -> float:
    """The share of the way to go after the share `done` of the stages: 1 − (1 − done)³.

    Steep first, while much can leave, and flat in the end: Zhu and Gupta, arXiv:1710.01878, eq. 1.
    """
    return 1.0 - (1.0 - done) ** 3


@dataclass(frozen=True)
class TrainedPass(Pass):
    """A pass that trains between its steps, where `finetune` says for how long.

    Attributes:
        trained_with: options of finetune for this pass, as a pipeline spells them; those of the
            user come on top.
    """

    trained_with: ClassVar[str] = ""

    finetune: float | None = option(
        None,
        EPOCHS,
        "epochs of training behind it, or spread over its steps; see the pass finetune",
    )
    training: str | None = option(
        None, help="options of finetune, as a pipeline spells them: 'loss=both:batch=64'"
    )

    def __post_init__(self) -> None:
        """Check the options, those of the training too.

        Raises:
            UsageError: `training` is given without `finetune`, or finetune does not take it.
        """
        super().__post_init__()
        if self.finetune is None and self.training is not None:
            raise UsageError(f"`training` of `{self.name}` is for use with `finetune=EPOCHS`.")
        if self.training is not None:
            self._training(1.0)

    def part(self: P, before: float, after: float) -> P:
        """The pass that goes from the share `before` of the way to the share `after`.

        It neither trains nor goes in steps. Passes with more than one stage override it.

        Args:
            before: in [0, 1], of all that the pass removes; what it is run on has lost that.
            after: above `before`; at 1 the pass has done all that it is asked for.
        """
        return replace(self, finetune=None, training=None)

    @property
    def stage_count(self) -> int:
        """How often the pass and training take turns."""
        return 1

    def unrolled(self) -> tuple[Pass, ...]:
        """The pass and training in turn; the pass alone where nothing is trained."""
        return (self,) if self.finetune is None else tuple(self._turns(self.finetune))

    def _turns(self, epochs: float) -> Iterator[Pass]:
        count, before = self.stage_count, 0.0
        each = epochs / (count - 1 + _LAST)
        for number in range(1, count + 1):
            after = cubic(number / count)
            yield self.part(before, after)
            made = self._training(each * (_LAST if number == count else 1))
            checkpoint = getattr(made, _CHECKPOINT)
            if checkpoint is not None and count > 1:  # turns are trainings of their own
                numbered: dict[str, Any] = {_CHECKPOINT: f"{checkpoint}.{number}"}
                made = replace(made, **numbered)
            yield made
            before = after

    def _training(self, epochs: float) -> Pass:
        """The pass finetune with the options of this one."""
        given = (self.training or "").strip(": ")
        words = [f"epochs={epochs!r}", *filter(None, self.trained_with.split(":"))]
        own = [word for word in words if not _names(given, word)]
        (made,) = parse_pipeline(":".join([_FINETUNE, *own, *filter(None, [given])])).passes
        return made


def _names(options: str, word: str) -> bool:
    """Whether options, as a pipeline spells them, give the one of `word` another value."""
    key = word.partition("=")[0]
    return re.search(rf"(^|:)\s*{re.escape(key)}\s*=", options) is not None
