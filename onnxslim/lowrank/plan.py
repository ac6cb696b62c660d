"""The option `plan`: splits spelled one by one, as `LAYER=METHOD/RANK`.

>>> planned_splits(("conv1=channel/8", "conv2=tucker2/8x16"))["conv2"].ranks
(8, 16)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from onnxslim.lowrank.candidates import Candidate
from onnxslim.solvers.decompositions.methods import METHODS

_ENTRY: Final = re.compile(r"(?P<layer>.+)=(?P<method>[a-z0-9]+)/(?P<ranks>[1-9]\d*(x[1-9]\d*)?)")


@dataclass(frozen=True)
class PlanEntry:
    """Constraint on the entries of `plan`."""

    def accepts(self, value: str) -> bool:
        """Whether `value` names a layer, a method and as many ranks as the method has."""
        match = _ENTRY.fullmatch(value)
        if match is None or match["method"] not in METHODS:
            return False
        return ("x" in match["ranks"]) == (match["method"] == "tucker2")

    def layer(self, entry: str) -> str:
        """The name of the layer in an entry."""
        match = _ENTRY.fullmatch(entry)
        assert match is not None  # `accepts` took it
        return match["layer"]

    def describe(self) -> str:
        """The form in words."""
        return "of the form LAYER=METHOD/RANK, for tucker2 LAYER=tucker2/OUTPUTSxINPUTS"

    def invalid(self) -> Iterator[str]:
        """Entries without a rank, with a rank of zero, with too few ranks, of no method."""
        yield from ("layer", "layer=8", "layer=channel/0", "layer=tucker2/8", "layer=other/8")


def planned_splits(entries: Sequence[str]) -> dict[str, Candidate]:
    """Method and ranks for each layer that a plan names."""
    found = {}
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        assert match is not None  # `PlanEntry` accepted it
        ranks = tuple(int(rank) for rank in match["ranks"].split("x"))
        found[match["layer"]] = Candidate(match["method"], ranks, 0.0)
    return found
