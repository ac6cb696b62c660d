"""What a pass promises and what it reports: `Fidelity`, `Change`, `Skip`, `PassResult`.

Data that every layer of onnxslim writes or reads. This module imports nothing of onnxslim.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Fidelity(enum.IntEnum):
    """What a pass promises of the model's outputs; a larger value promises less.

    EXACT: equal bits with onnxruntime's own optimisations off. CLOSE: rounding, per output
    `max|new - ref| <= 1e-6 + 1e-4 * range(ref)`. LOSSY: finite, measured, held against the floor.
    """

    EXACT = 0
    CLOSE = 1
    LOSSY = 2


@dataclass(frozen=True)
class Change:
    """One thing that a pass did; `node` is the first output of the node concerned."""

    node: str
    what: str


@dataclass(frozen=True)
class Skip:
    """One thing that a pass declined to do, and why."""

    node: str
    why: str


@dataclass(frozen=True)
class PassResult:
    """What a pass did and what it declined.

    Attributes:
        fidelity: what was in fact promised by the changes made, when that is stronger than the
            class's promise (an affine rewrite that only multiplied by one is exact).
        outputs: names of outputs that it added to the graph, because its options asked for them.
    """

    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()
    fidelity: Fidelity | None = None
    outputs: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the graph is another than before."""
        return bool(self.changes)


__all__ = ["Change", "Fidelity", "PassResult", "Skip"]
