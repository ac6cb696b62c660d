"""What a place reads and what it is to return, at positions drawn from the samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PatchEvidence:
    """Patches of the input with the outputs that belong to them, float32.

    Attributes:
        patches: (rows, kernel..., channels).
        outputs: (rows, outputs).
    """

    patches: np.ndarray
    outputs: np.ndarray

    def group(self, number: int, groups: int) -> PatchEvidence:
        """The part of one group of channels."""
        return PatchEvidence(
            np.ascontiguousarray(np.split(self.patches, groups, axis=-1)[number]),
            np.ascontiguousarray(np.split(self.outputs, groups, axis=-1)[number]),
        )

    def first(self, rows: int) -> PatchEvidence:
        """The first rows."""
        return PatchEvidence(self.patches[:rows], self.outputs[:rows])

    @property
    def energy(self) -> float:
        """E‖y − E[y]‖²."""
        return float(self.outputs.var(axis=0, dtype=np.float64).sum())

    def error(self, found: np.ndarray) -> float:
        """E‖y − ŷ‖² for outputs ŷ, (rows, outputs)."""
        return float(np.square(self.outputs - found, dtype=np.float64).sum() / len(found))
