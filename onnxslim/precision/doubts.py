"""Constants that float16 does not hold well, and which of them may be stored so all the same.

An entry that becomes zero, or 65504, says little about the outputs of the model. So constants with
such entries are tried, and the outputs on samples decide: together they may cost as much as
rounding all other weights does, or what leaves 60 dB. Where they cost more, those that hurt are
found by bisection, in the order of what each loses, and stay float32.

Owns: which constants are in doubt, and the search. Not here: how a model is converted (see `run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log10, sqrt
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.graph.moved_constants import final_readers
from onnxslim.graph.operands import const_array, const_value
from onnxslim.precision.value_ranges import MATRICES, HalfRounding

_ALLOWED: Final = 2.0**-10  # relative error of an output that is always allowed: 60 dB
_SHARE: Final = sqrt(2.0)  # of the error without constants in doubt: as much energy once more
_TELLING: Final = 0.03  # from this error on, outputs move too much to tell one constant's part
_MEASUREMENTS: Final = 12

# what reads a constant of which a vanished entry costs at most 2^-25 times another operand
_BOUNDED: Final = MATRICES | {
    "Add",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Mul",
    "PRelu",
    "RMSNormalization",
    "Sub",
}

Measure = Callable[[frozenset[str]], float]
"""The relative error of the outputs with some constants, by name, trusted."""


@dataclass(frozen=True)
class Doubts:
    """What is known of the constants of a model that do not fit float16 as they are.

    Attributes:
        trusted: names of those that are stored as float16 all the same.
        refused: by the names of others, what the outputs said.
    """

    trusted: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    _known: dict[int, tuple[object, HalfRounding]] = field(default_factory=dict)

    def rounding(self, tensor: gs.Tensor) -> HalfRounding:
        """What float16 does to a constant; computed once for all copies of the model."""
        stored = const_value(tensor)
        assert stored is not None
        found = self._known.get(id(stored))
        if found is None:
            values = const_array(tensor)
            assert values is not None
            found = self._known[id(stored)] = (stored, HalfRounding.of(values))
        return found[1]

    def objection(self, tensor: gs.Tensor, *, is_matrix: bool) -> str | None:
        """Why a constant stays float32, as a clause to follow its name; None where it does not."""
        why = self.rounding(tensor).objection(is_matrix=is_matrix)
        if why is None or tensor.name in self.trusted:
            return None
        said = self.refused.get(tensor.name)
        return why if said is None else f"{why}, and {said}"

    def operand_objection(self, tensor: gs.Tensor, *, is_matrix: bool) -> str | None:
        """As `objection`, for an operator that computes in float16: its range has no exception."""
        if self.rounding(tensor).saturated:
            return self.rounding(tensor).objection(is_matrix=is_matrix)
        return self.objection(tensor, is_matrix=is_matrix)

    def remark(self, tensor: gs.Tensor) -> str:
        """What became of the entries of a trusted constant that do not fit, for the report."""
        if tensor.name not in self.trusted:
            return ""
        return f"; {self.rounding(tensor).words}, which the outputs on samples bear"

    def can_be_tried(self, tensor: gs.Tensor, *, has_data: bool) -> bool:
        """Whether outputs can tell what a constant in doubt does.

        Args:
            tensor: a constant that does not fit.
            has_data: whether the samples are the user's.
        """
        rounding, readers = self.rounding(tensor), {node.op for node in final_readers(tensor)}
        if rounding.saturated:
            # what made-up inputs hardly reach can be large on real ones; a table has rows that no
            # sample reads
            return has_data and "Gather" not in readers
        # a divisor or bound that becomes zero may be one that protects from rare inputs
        return readers <= _BOUNDED or not rounding.vanished

    def settled(self, doubtful: Iterable[gs.Tensor], measure: Measure) -> Doubts:
        """With what the outputs say of the constants in doubt that can be tried."""
        lost: dict[str, float] = {}
        for tensor in doubtful:
            lost[tensor.name] = max(lost.get(tensor.name, 0.0), self.rounding(tensor).lost)
        if not lost:
            return self
        trusted, refused = _decided(sorted(lost, key=lambda name: (lost[name], name)), measure)
        return replace(self, trusted=trusted, refused=refused)


def _decided(names: Sequence[str], measure: Measure) -> tuple[frozenset[str], Mapping[str, str]]:
    """The names that the outputs bear, and what they say of the others.

    Args:
        names: those that lose least first.
        measure: asked at most `_MEASUREMENTS` times.
    """
    base = measure(frozenset())
    if not base <= _TELLING:
        return frozenset(), dict.fromkeys(names, f"without it, outputs have {_db(base)} already")
    limit = max(_ALLOWED, _SHARE * base)
    found = measure(frozenset(names))
    if found == 0:
        return frozenset(), dict.fromkeys(names, "no output on samples depends on it")
    left = _MEASUREMENTS - 2
    trusted: list[str] = []
    refused: dict[str, str] = {}
    rest = list(names)
    while rest and not found <= limit:
        # `kept` of the rest hold together with those trusted so far, `broken` of them do not
        kept, broken, worst = 0, len(rest), found
        while broken - kept > 1 and left:
            middle = (kept + broken) // 2
            error = measure(frozenset((*trusted, *rest[:middle])))
            left -= 1
            if error <= limit:
                kept = middle
            else:
                broken, worst = middle, error
        trusted += rest[:kept]
        words = f"with it, outputs have {_db(worst)} instead of {_db(base)}"
        hurting = rest[kept:broken] if left else rest[kept:]
        refused.update(dict.fromkeys(hurting, words))
        rest = rest[broken:] if left else []
        if rest:
            found = measure(frozenset((*trusted, *rest)))
            left -= 1
    return frozenset((*trusted, *rest)), refused


def _db(error: float) -> str:
    return "no error" if error == 0 else f"{-20 * log10(error):.0f} dB"
