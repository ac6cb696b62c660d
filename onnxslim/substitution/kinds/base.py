"""The interface of a kind of block: what it builds, what it takes, and where its weights start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import gcd, prod
from typing import ClassVar, Final

import numpy as np

from onnxslim.substitution.patches.sketch import BlockCell, Sketch, Values
from onnxslim.substitution.patches.terms import PatchMap

Sizes = Mapping[str, float]
"""How large a block is, by the names of the options that say so."""

_ONE_SIDED: Final = 0.02  # share of the energy on the other side that a Relu may take


@dataclass(frozen=True)
class PositionGrid:
    """Positions of one sample: along each axis of the input, and of the output."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def before(self) -> int:
        """Positions of the input."""
        return prod(self.inputs)

    @property
    def after(self) -> int:
        """Positions of the output."""
        return prod(self.outputs)


class BlockKind(ABC):
    """A kind of block.

    Attributes:
        name: as options spell it.
        sizes: the options that say how large a block is -> the values to choose from, the usual one
            first.
    """

    name: ClassVar[str]
    sizes: ClassVar[Mapping[str, tuple[float, ...]]]

    def why_not(self, cell: BlockCell) -> str | None:
        """Why a block of this kind cannot do what a place does; None when it can."""
        return None

    @abstractmethod
    def sketch(self, cell: BlockCell, sizes: Sizes) -> Sketch:
        """The steps of a block."""

    @abstractmethod
    def weights(self, cell: BlockCell, sizes: Sizes) -> int:
        """Weights without biases, by the formula."""

    @abstractmethod
    def macs(self, cell: BlockCell, sizes: Sizes, grid: PositionGrid) -> int:
        """Multiply-accumulates of one sample, by the formula."""

    @abstractmethod
    def start(self, sketch: Sketch, original: PatchMap) -> Values:
        """Values of all but the last Convs, from the map that the block replaces."""

    def choices(self, given: Sizes) -> list[Sizes]:
        """All sizes to choose from; those that are given are fixed."""
        names = list(self.sizes)
        every = [(given[name],) if name in given else self.sizes[name] for name in names]
        return [dict(zip(names, values, strict=True)) for values in product(*every)]

    def usual(self, given: Sizes) -> Sizes:
        """The usual sizes, with those that are given."""
        return {name: given.get(name, values[0]) for name, values in self.sizes.items()}


def divisor(wished: float, *numbers: int) -> int:
    """The largest number up to `wished` that divides all of the others."""
    common = gcd(*numbers)
    return next(n for n in range(max(int(wished), 1), 0, -1) if common % n == 0)


def signs_of(original: PatchMap, row: np.ndarray) -> tuple[int, ...]:
    """The signs with which a direction has to be there behind a Relu, the larger part first."""
    values = original.patches @ row.astype(np.float32)
    above, below = (
        float(np.square(np.maximum(part, 0)).sum(dtype=np.float64)) for part in (values, -values)
    )
    first = 1 if above >= below else -1
    is_one_sided = min(above, below) <= _ONE_SIDED * (above + below)
    return (first,) if is_one_sided else (first, -first)
