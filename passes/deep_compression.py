"""Make the model as small as possible at the accuracy it has: simplify, prune, cluster.

Rewrite:
    `simplify`, then `compress-weights`, each a step of its own: every weight gets as many zeros and
    as few values as its layer tolerates. Write the result as a packed file with `onnxslim pack`:
    the allocation counts the bytes of that file.

Why it is correct:
    Each member keeps its own promise; see the pages of the members.

Declines when:
    1. A member declines; its own page says when. Without calibration samples a run is refused.

Fidelity:
    LOSSY, held to the user's floors; without any, to `agreement` or `sqnr` and to the default
    floor.

Reference:
    Han, Mao, Dally, Deep Compression, arXiv:1510.00149. We differ: no labels, the allocation
    between layers is computed, and retraining is an option.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxslim.passes.compress_weights import CompressWeights
from onnxslim.passes.simplify import Simplify
from onnxslim.pipeline.options import at_least, interval, option
from onnxslim.pipeline.passes import Pass, Preset
from onnxslim.pipeline.trained_pass import EPOCHS
from onnxslim.records import Fidelity


@dataclass(frozen=True)
class DeepCompression(Preset):
    """Make the model as small as possible at the accuracy it has: simplify, prune, cluster."""

    name: ClassVar[str] = "deep-compression"
    examples: ClassVar[Mapping[str, str]] = {
        "deep-compression": "as small as the default floor allows; pack the result",
        "deep-compression:agreement=0.99": "1 % of the answers may change",
        "deep-compression:finetune=true": "trained on the way, without labels",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    rounds: ClassVar[int] = 1

    agreement: float = option(
        0.998, interval(0, 1), "share of top-1 answers to keep, where no floor is given"
    )
    sqnr: float = option(
        20.0, at_least(0), "dB to keep where outputs are no class scores and no floor is given"
    )

    finetune: float | None = option(
        None,
        EPOCHS,
        "epochs that each candidate learns from the original; see compress-weights",
    )
    training: str | None = option(
        None, help="options of finetune, as a pipeline spells them: 'batch=128'"
    )

    def members(self) -> tuple[Pass, ...]:
        """The two steps."""
        compress = CompressWeights(
            agreement=self.agreement,
            sqnr=self.sqnr,
            finetune=self.finetune,
            training=self.training,
        )
        return (Simplify(), compress)
