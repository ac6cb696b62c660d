"""What a pass promises and what it reports, and what an output is: `Fidelity`, `OutputKind`, ...

Data that every layer of onnxslim writes or reads. This module imports nothing of onnxslim.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace


class Fidelity(enum.IntEnum):
    """What a pass promises about the outputs of a model; a larger value promises less.

    EXACT: equal bits with onnxruntime's own optimisations off. CLOSE: rounding, per output
    `max|new - ref| <= 1e-6 + 1e-4 * range(ref)`. LOSSY: outputs are finite, and their error is
    measured and held against the floors of the user.
    """

    EXACT = 0
    CLOSE = 1
    LOSSY = 2


class OutputKind(enum.StrEnum):
    """What the values of an output are, and with that, which figure says how far they moved.

    CLASSES: scores over the last axis, of which the largest decides: top-1 agreement. EMBEDDING:
    rows along the last axis whose direction matters: cosine of rows. HIDDEN_STATES: such a row at
    each position of a sequence. TOKEN_LOGITS: scores over a vocabulary: Kullback-Leibler divergence
    of rows, and top-1 agreement. VALUES: all other numbers: signal to noise in dB. DISCRETE:
    integers, truth values, text: share of equal values.
    """

    CLASSES = "classes"
    EMBEDDING = "embedding"
    HIDDEN_STATES = "hidden-states"
    TOKEN_LOGITS = "token-logits"
    VALUES = "values"
    DISCRETE = "discrete"

    @property
    def is_scores(self) -> bool:
        """Whether the largest entry of a row is an answer."""
        return self in (OutputKind.CLASSES, OutputKind.TOKEN_LOGITS)

    @property
    def is_directions(self) -> bool:
        """Whether it is the direction of a row that matters."""
        return self in (OutputKind.EMBEDDING, OutputKind.HIDDEN_STATES)


@dataclass(frozen=True)
class Change:
    """One edit of a pass.

    Attributes:
        node: name of the first output of the node that was edited.
        what: the edit in words.
        site: name by which the option `skip` of the pass leaves the edit out; None: `node`.
    """

    node: str
    what: str
    site: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Skip:
    """One edit that a pass declined.

    Attributes:
        node: name of the first output of the node that stays as it is.
        why: the reason in words.
        decides: whether the pass did nothing at all because of it.
    """

    node: str
    why: str
    decides: bool = False


@dataclass(frozen=True)
class PassResult:
    """The changes and skips of one call of a pass.

    Attributes:
        changes: the edits.
        skips: the edits that were declined.
        fidelity: the promise of these changes, where it is stronger than that of the class (an
            affine rewrite that only multiplied by one is exact); None: the promise of the class.
        outputs: names of the graph outputs that the pass added because its options asked for them.
        resolved: where the pass decided by measuring time or by a search, the spelling of what it
            decided in a pipeline, which gives the same bytes without either; None: it did neither.
        untouched: what a pass for all weights left as it was, in words, where it is notable. Set
            by the manager.
        notes: what the user should know, a sentence each.
    """

    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()
    fidelity: Fidelity | None = None
    outputs: tuple[str, ...] = ()
    resolved: str | None = None
    untouched: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the graph was edited."""
        return bool(self.changes)

    @classmethod
    def together(cls, results: Sequence[PassResult], resolved: str | None = None) -> PassResult:
        """Calls in a row as one; `resolved` is how a pipeline spells what they decided."""
        changes = tuple(change for result in results for change in result.changes)
        skips = [skip for result in results for skip in result.skips]
        if changes:  # what one of them declined does not decide on all
            skips = [replace(skip, decides=False) for skip in skips]
        untouched = [result.untouched for result in results if result.untouched]
        return cls(
            changes,
            tuple(dict.fromkeys(skips)),
            outputs=tuple(name for result in results for name in result.outputs),
            resolved=resolved,
            untouched=untouched[-1] if untouched else None,
            notes=tuple(dict.fromkeys(note for result in results for note in result.notes)),
        )
