"""What training brings down: the distance of outputs from a teacher's, by what each output is.

    scores of classes and tokens   Kullback-Leibler divergence of rows, softened by a temperature T
                                   and times T² (Hinton et al. 2015, arXiv:1503.02531, section 2)
    embeddings, hidden states      1 - cosine of rows, and squares by the teacher's energy
    other values                   squares by the variance of the teacher's values, each part alone

Positions that only fill up texts do not count. Outputs that are no floats do not, either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.analysis.output_parts import OutputPart
from onnxslim.records import OutputKind

T = TypeVar("T", np.ndarray, Tensor)
_TINY: Final = 1e-12
_MIN_LOG: Final = 1e-30
_LEAST_LOG: Final = -30.0  # scores that a mask leaves out are minus infinity
_SUM_TOLERANCE: Final = 1e-2
# a classifier is sure of what it was trained on: unsoftened, hardly anything is left to learn from
_TEMPERATURES: Final = {OutputKind.CLASSES: 4.0}


@dataclass
class OutputObjective:
    """The distance of one output, or of a part of it, from the teacher's.

    Attributes:
        name: of the output.
        kind: what its values are.
        part: the part; None: all of it.
        of: name of the teacher's output; "": the same.
        weight: by which the loss is multiplied.
        is_share: whether scores are probabilities, whose logarithms are compared.
        variance: of the teacher's values over the samples.
    """

    name: str
    kind: OutputKind
    part: OutputPart | None = None
    of: str = ""
    weight: float = 1.0
    is_share: bool = False
    variance: float = 1.0
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    _looks_like_shares: bool = True
    _within_one: bool = True

    @property
    def taught_by(self) -> str:
        """Name of the teacher's output."""
        return self.of or self.name

    def observe(self, array: np.ndarray) -> None:
        """Add an output of the teacher to what is known of its values."""
        values = np.asarray(self._of(array), np.float64)
        finite = values[np.isfinite(values)]
        for place, term in enumerate((finite.size, finite.sum(), np.square(finite).sum())):
            self._sums[place] += float(term)
        if self.kind.is_scores and values.size:
            sums = values.sum(-1)
            self._within_one = self._within_one and values.min() >= 0 and values.max() <= 1
            is_share = values.min() >= 0 and np.abs(sums - 1).max() < _SUM_TOLERANCE
            self._looks_like_shares = self._looks_like_shares and bool(is_share)

    def settle(self) -> None:
        """Decide, from all that was observed, how values are compared."""
        count, total, squares = self._sums
        mean = total / max(count, 1)
        self.variance = max(squares / max(count, 1) - mean * mean, _TINY)
        self.is_share = self._looks_like_shares
        if self.kind.is_scores and self._within_one and not self.is_share:
            self.kind = OutputKind.VALUES  # scores of many labels, each for itself

    def distance(
        self, found: Tensor, wanted: Tensor, counts: Tensor | None, temperature: float | None
    ) -> Tensor:
        """The mean distance over a batch; no temperature: that of the kind of output."""
        found, wanted = self._of(found), self._of(wanted)
        if counts is not None and wanted.ndim >= 3 and wanted.shape[:2] == counts.shape:
            found, wanted = found[counts], wanted[counts]
        if not wanted.numel():
            return found.sum() * 0
        if self.kind.is_scores and wanted.shape[-1] > 1:
            own = _TEMPERATURES.get(self.kind, 1.0) if temperature is None else temperature
            return self._divergence(found, wanted, own)
        if self.kind.is_directions:
            energy = wanted.square().mean().clamp_min(_TINY)
            cosine = functional.cosine_similarity(found, wanted, dim=-1)
            return (found - wanted).square().mean() / energy + (1 - cosine).mean()
        finite = torch.isfinite(wanted)
        off = torch.where(finite, found - torch.where(finite, wanted, found), 0.0)
        return off.square().mean() / self.variance

    def _divergence(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        rows = found.reshape(-1, found.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
        if self.is_share:
            rows = rows[0].clamp_min(_MIN_LOG).log(), rows[1].clamp_min(_MIN_LOG).log()
        logs = [functional.log_softmax(x / temperature, dim=-1).clamp_min(_LEAST_LOG) for x in rows]
        nats = functional.kl_div(logs[0], logs[1], log_target=True, reduction="batchmean")
        return nats * temperature**2

    def _of(self, values: T) -> T:
        return values if self.part is None else values[self.part.index]


def objectives_of(
    outputs: Sequence[str],
    kinds: Mapping[str, OutputKind],
    parts: Mapping[str, Sequence[OutputPart]],
) -> list[OutputObjective]:
    """One for each output, or for each part of one that is joined."""
    found = []
    for name in outputs:
        own = parts.get(name, ())
        found += [OutputObjective(name, OutputKind.VALUES, part) for part in own]
        if not own:
            found.append(OutputObjective(name, kinds.get(name, OutputKind.VALUES)))
    return [item for item in found if item.kind is not OutputKind.DISCRETE]
