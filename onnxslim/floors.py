"""What the user will not go below."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Floors:
    """Limits on what lossy passes may cost; None: no such floor.

    Attributes:
        max_drop: points of accuracy (0.5 is half a percentage point) that may be lost.
        min_agreement: share in [0, 1] of top-1 answers that must stay those of the input model.
        min_sqnr_db: signal to quantization noise ratio in dB of every output.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_sqnr_db: float | None = None


__all__ = ["Floors"]
