"""What a run is for: which of bytes and latency may not get worse."""

from __future__ import annotations

import enum


class Goal(enum.Enum):
    """Which of bytes and latency may not get worse."""

    BOTH = "both"
    LATENCY = "latency"
    BYTES = "bytes"


__all__ = ["Goal"]
