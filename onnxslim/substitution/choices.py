"""A kind of block with its sizes, as reports and the option `plan` spell it.

>>> planned_blocks(("conv1=fire/0.5", "conv2=xception"))["conv1"].sizes
{'squeeze': 0.5}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxslim.substitution.kinds.base import BlockKind, Sizes
from onnxslim.substitution.kinds.table import KINDS


@dataclass(frozen=True)
class BlockChoice:
    """What a place becomes.

    Attributes:
        kind: the name of one of `KINDS`.
        numbers: its sizes, in the order in which the kind names them.
        added: the share of the output's energy that is lost; 0 where it is not measured yet.
    """

    kind: str
    numbers: tuple[float, ...]
    added: float = 0.0

    @classmethod
    def of(cls, kind: BlockKind, sizes: Sizes) -> BlockChoice:
        """The choice of a kind at some sizes."""
        return cls(kind.name, tuple(sizes[name] for name in kind.sizes))

    @property
    def block(self) -> BlockKind:
        """The kind."""
        return KINDS[self.kind]

    @property
    def sizes(self) -> dict[str, float]:
        """The sizes by name."""
        return dict(zip(self.block.sizes, self.numbers, strict=True))

    def __str__(self) -> str:
        return "/".join((self.kind, *(f"{number:g}" for number in self.numbers)))


def parsed(text: str) -> BlockChoice | None:
    """The choice that a text spells; None where it spells none."""
    kind, *numbers = text.split("/")
    try:
        values = tuple(float(number) for number in numbers)
    except ValueError:
        return None
    is_there = kind in KINDS and len(values) == len(KINDS[kind].sizes)
    return BlockChoice(kind, values) if is_there and all(v > 0 for v in values) else None


@dataclass(frozen=True)
class BlockEntry:
    """Constraint on the entries of `plan`."""

    def accepts(self, value: str) -> bool:
        """Whether `value` names a layer, a kind of block and as many sizes as the kind has."""
        layer, _, block = value.rpartition("=")
        return bool(layer) and parsed(block) is not None

    def layer(self, entry: str) -> str:
        """The name of the layer in an entry."""
        return entry.rpartition("=")[0]

    def describe(self) -> str:
        """The form in words."""
        return "of the form LAYER=BLOCK/SIZE, with as many sizes as the block has"

    def invalid(self) -> Iterator[str]:
        """Entries without a block, with too few sizes, with a size of zero, of no block."""
        yield from ("layer", "layer=fire", "layer=fire/0", "layer=shuffle/0.5", "layer=other/1")


def planned_blocks(entries: Sequence[str]) -> Mapping[str, BlockChoice]:
    """The choice for each place that a plan names."""
    found = {}
    for entry in entries:
        layer, _, block = entry.rpartition("=")
        choice = parsed(block)
        assert choice is not None  # `BlockEntry` accepted it
        found[layer] = choice
    return found
