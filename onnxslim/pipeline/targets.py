"""What each engine takes of an ONNX file: the table `targets.toml`, as passes ask it.

A pass gets the target through its `Context`. Where the target does not take a form, the pass writes
another one, or declines with the target as the reason (see `TargetEngine.objection`); what is left,
the package `lowering` replaces at the end.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from onnxslim.errors import UsageError
from onnxslim.pipeline.suggest import did_you_mean

DEFAULT_TARGET: Final = "onnxruntime"


class Trait(enum.StrEnum):
    """What a file may hold that not every engine takes; the values are keys of the table."""

    FUNCTIONS = "functions"
    DECODERS = "decoders"
    SPARSE = "sparse"
    MATMUL_NBITS = "matmul-nbits"
    MATMUL_8BITS = "matmul-8bits"
    CONTRIB = "contrib"
    FOUR_BITS = "four-bits"
    UNEVEN_BLOCKS = "uneven-blocks"
    ODD_BLOCKS = "odd-blocks"
    BLOCKS = "blocks"
    INT8 = "int8"
    ZERO_POINTS = "zero-points"
    UNSIGNED = "unsigned"
    INTEGER_BIASES = "integer-biases"
    RUN_TIME_RANGES = "run-time-ranges"
    BRANCHES = "branches"
    OPEN_SHAPES = "open-shapes"
    FLOAT16 = "float16"

    @property
    def words(self) -> str:
        """What it is, in words that begin no sentence."""
        return _WORDS[self]


_WORDS: Final[Mapping[Trait, str]] = {
    Trait.FUNCTIONS: "model-local functions",
    Trait.DECODERS: "operators that compute weights from codes",
    Trait.SPARSE: "sparse initializers",
    Trait.MATMUL_NBITS: "MatMulNBits",
    Trait.MATMUL_8BITS: "MatMulNBits of 8 bits",
    Trait.CONTRIB: "operators of other domains than ONNX's own",
    Trait.FOUR_BITS: "codes of 4 bits",
    Trait.UNEVEN_BLOCKS: "blocks that do not divide the axis",
    Trait.ODD_BLOCKS: "blocks that are no multiple of 4, or above 32 and none of 32",
    Trait.BLOCKS: "8-bit codes with a scale for each block",
    Trait.INT8: "QuantizeLinear and DequantizeLinear of 8 bits",
    Trait.ZERO_POINTS: "zero points other than 0",
    Trait.UNSIGNED: "unsigned codes",
    Trait.INTEGER_BIASES: "biases of 32-bit codes",
    Trait.RUN_TIME_RANGES: "ranges that are found at run time",
    Trait.BRANCHES: "If",
    Trait.OPEN_SHAPES: "inputs whose sizes are open",
    Trait.FLOAT16: "arithmetic in float16",
}


class Known(enum.StrEnum):
    """How a fact of the table is known: it was run here, it was read, or nobody says."""

    RUN = "run"
    READ = "read"
    ASSUMED = "assumed"


@dataclass(frozen=True)
class TraitFact:
    """Whether a target takes a trait.

    Attributes:
        takes: whether it does.
        known: how that is known.
        source: what was run or read; for what is assumed, why so.
    """

    takes: bool
    known: Known
    source: str


@dataclass(frozen=True)
class OpsetRange:
    """The opsets of the standard domain that a target takes, with the source of that."""

    least: int
    most: int
    known: Known
    source: str


@dataclass(frozen=True)
class TargetEngine:
    """An engine, and what it takes.

    Attributes:
        name: as `--target` spells it.
        title: the engine and the version that the facts are of.
        opsets: the range of opsets.
        facts: for each trait, whether the engine takes it.
        missing: operators of ONNX that the engine lacks, as far as that is known.
    """

    name: str
    title: str
    opsets: OpsetRange
    facts: Mapping[Trait, TraitFact]
    missing: frozenset[str] = frozenset()

    def takes(self, trait: Trait) -> bool:
        """Whether the engine takes a trait."""
        return self.facts[trait].takes

    def objection(self, trait: Trait) -> str | None:
        """Why a pass should not write a trait, in words; None: it may."""
        if self.takes(trait):
            return None
        fact = self.facts[trait]
        how = "" if fact.known is Known.ASSUMED else f" ({fact.known}: {fact.source})"
        return f"the target {self.name} takes no {trait.words}{how}"

    @property
    def is_default(self) -> bool:
        """Whether it is onnxruntime, for which every pass writes the best that it can."""
        return self.name == DEFAULT_TARGET


@cache
def targets() -> Mapping[str, TargetEngine]:
    """All targets by name, in the order of the table."""
    text = resources.files("onnxslim.pipeline").joinpath("targets.toml").read_text("utf-8")
    found: dict[str, TargetEngine] = {}
    for name, entry in tomllib.loads(text).items():
        found[name] = _common(name, entry, found) if "common-to" in entry else _read(name, entry)
    return found


def target_of(name: str) -> TargetEngine:
    """The target that is called so.

    Raises:
        UsageError: there is none.
    """
    known = targets()
    if name not in known:
        raise UsageError(
            f"There is no target `{name}`.{did_you_mean(name, known)} They are {', '.join(known)}."
        )
    return known[name]


def _read(name: str, entry: Mapping[str, Any]) -> TargetEngine:
    opset = entry["opset"]
    opsets = OpsetRange(opset["least"], opset["most"], *_how(opset))
    facts = {trait: TraitFact(entry[trait]["takes"], *_how(entry[trait])) for trait in Trait}
    return TargetEngine(name, entry["title"], opsets, facts, frozenset(entry.get("missing", ())))


def _how(entry: Mapping[str, Any]) -> tuple[Known, str]:
    (known,) = (known for known in Known if known in entry)
    return known, str(entry[known])


def _common(
    name: str, entry: Mapping[str, Any], others: Mapping[str, TargetEngine]
) -> TargetEngine:
    """What all of several engines take."""
    members = [others[member] for member in entry["common-to"]]
    opsets = OpsetRange(
        max(member.opsets.least for member in members),
        min(member.opsets.most for member in members),
        Known.RUN,
        ", ".join(member.name for member in members),
    )
    facts = {trait: _weakest(trait, members) for trait in Trait}
    missing = frozenset().union(*(member.missing for member in members))
    return TargetEngine(name, entry["title"], opsets, facts, missing)


def _weakest(trait: Trait, members: Iterable[TargetEngine]) -> TraitFact:
    """The fact of the first that does not take the trait; of all, where each does."""
    facts = [(member, member.facts[trait]) for member in members]
    for member, fact in facts:
        if not fact.takes:
            return TraitFact(False, fact.known, f"{member.name}: {fact.source}")
    return TraitFact(True, Known.RUN, ", ".join(member.name for member, _ in facts))
