"""Models that learn while they code: no table of frequencies has to be stored.

Symbols are coded in blocks that grow; each is coded with what the blocks before it have taught, so
a reader knows the same. Every function here serves both directions: with a writer it reads
`symbols`, with a reader it fills them. All arithmetic is in whole numbers.

    code_flat     one distribution for all symbols
    code_mask     zeros and ones of a matrix, one probability a line: what a pruned layer keeps of
                  an input depends on that input far more than on anything else
    code_lines    symbols that belong to lines: a distribution for each line, which starts as that
                  of all lines whose symbols have so far been as large
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.packing.coders import RangeCoder

_FIRST: Final = 16  # symbols in the first block of `code_flat`
_MAX: Final = 1 << 20  # symbols in a block, at most
_GROWTH: Final = 4
_MASK_GROWTH: Final = 3
_SCALE: Final = 1 << 16
_CLASSES: Final = 8
_ROW_ITEMS: Final = 1 << 22  # weights given to a coder at a time
_OWN_MODEL: Final = 24  # symbols of a line from which a model of its own is quicker than a row
MAX_CELLS: Final = 1 << 23  # lines times alphabet, whose counts are kept


def _growing(total: int, first: int, most: int, share: int) -> Iterator[slice]:
    """Blocks as long as a share of all that came before: the half, the third, the fourth, ..."""
    start = 0
    while start < total:
        stop = min(start + max(first, min(start // share, most)), total)
        yield slice(start, stop)
        start = stop


# --------------------------------------------------------------------------- one distribution


def code_flat(coder: RangeCoder, symbols: np.ndarray, alphabet: int, doubt: int) -> None:
    """Code symbols below `alphabet`.

    Args:
        coder: either end.
        symbols: uint8 (n,), read or filled.
        alphabet: how many symbols there are.
        doubt: weight of a symbol that was never seen, in sixteenths of one that was seen once.
    """
    weights = np.full(alphabet, doubt, np.int64)
    for block in _growing(symbols.size, _FIRST, _MAX, _GROWTH):
        coder.code(symbols[block], weights)
        weights += 16 * np.bincount(symbols[block], minlength=alphabet)


# --------------------------------------------------------------------------- masks


def code_mask(coder: RangeCoder, mask: np.ndarray, ones: int, trust: int) -> None:
    """Code a matrix of zeros and ones, column after column, with one probability a line.

    A line's probability is (its ones + trust · mean) / (its length so far + trust); lines with
    about as many ones are coded together.

    Args:
        coder: either end.
        mask: uint8 (lines, length), read or filled.
        ones: how many ones there are in all.
        trust: how many columns the mean of all lines is worth.
    """
    lines, length = mask.shape
    if not lines:
        return
    mean = min(max(ones * _SCALE // max(mask.size, 1), 1), _SCALE - 1)
    seen = np.zeros(lines, np.int64)
    for block in _growing(length, 1, max(_MAX // max(lines, 1), 1), _MASK_GROWTH):
        order, bounds = _groups(_level(seen))
        sums = np.add.reduceat(seen[order], bounds[:-1])
        sizes = np.diff(bounds)
        weights = np.empty((sizes.size, 2), np.int64)
        weights[:, 1] = sums * _SCALE + trust * mean * sizes
        weights[:, 0] = (block.start * sizes - sums) * _SCALE + trust * (_SCALE - mean) * sizes
        buffer = mask[order, block]
        for group, start, stop in zip(
            weights, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True
        ):
            coder.code(buffer[start:stop].reshape(-1), group)
        mask[order, block] = buffer
        seen[order] += buffer.sum(axis=1, dtype=np.int64)


def _level(count: np.ndarray) -> np.ndarray:
    """Whole numbers up to 7 as they are, larger ones to two bits after the first."""
    _, exponent = np.frexp(count.astype(np.float64))
    shift = np.maximum(exponent.astype(np.int64) - 3, 0)
    return 4 * shift + (count >> shift)


def _groups(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order that brings equal levels together, and where each of them begins, with the end."""
    order = np.argsort(level, kind="stable")
    ordered = level[order]
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, np.concatenate([[0], edges, [level.size]])


# --------------------------------------------------------------------------- symbols of columns


@dataclass(frozen=True)
class Lines:
    """Which symbols belong to which line: `counts[i]` of them, one line after the other."""

    counts: np.ndarray

    @classmethod
    def equal(cls, lines: int, length: int) -> Lines:
        """Lines of one length."""
        return cls(np.full(lines, length, np.int64))


@dataclass(frozen=True)
class Blend:
    """How a line's own distribution is made.

    Attributes:
        centre: twice the symbol of the smallest magnitude; a symbol's magnitude is |2s - centre|.
        trust: how many of its own symbols the distribution of its class is worth; 0: lines have
            no distribution of their own, only that of their class.
    """

    centre: int
    trust: int


def code_lines(
    coder: RangeCoder, symbols: np.ndarray, lines: Lines, alphabet: int, blend: Blend
) -> None:
    """Code symbols that belong to lines: first the first of each, then the next few, and so on.

    Args:
        coder: either end.
        symbols: uint8, one line's after the other's; read or filled.
        lines: to which lines they belong.
        alphabet: how many symbols there are.
        blend: how distributions are made.
    """
    state = _LineModels(lines.counts.size, alphabet, blend)
    store = _LineSymbols(symbols, lines)
    longest = int(lines.counts.max(initial=0))
    for block in _growing(longest, 1, max(_MAX // max(lines.counts.size, 1), 1), _GROWTH):
        active = np.flatnonzero(lines.counts > block.start)
        classes = state.classes(active)
        order, bounds = _groups(classes)
        active, classes = active[order], classes[order]
        run = store.run(active, block)
        values = store.take(run)
        if blend.trust:
            _code_each(coder, values, run.lengths, state.own_weights(active, classes))
        else:
            ends = np.concatenate([[0], np.cumsum(run.lengths)])[bounds].tolist()
            for start, stop, kind in zip(ends, ends[1:], classes[bounds[:-1]], strict=False):
                coder.code(values[start:stop], state.class_weights[kind])
        store.put(run, values)
        if block.stop < longest:
            state.learn(values, run, classes[bounds[:-1]], bounds)


def _code_each(
    coder: RangeCoder, values: np.ndarray, lengths: np.ndarray, weights: np.ndarray
) -> None:
    """Code each line's symbols with its own row of `weights`: two ways to do the same."""
    longest = int(lengths.max())
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if longest >= _OWN_MODEL:
        for start, stop, row in zip(ends[:-1].tolist(), ends[1:].tolist(), weights, strict=True):
            coder.code(values[start:stop], row)
        return
    step = max(_ROW_ITEMS // (weights.shape[1] * longest), 1)
    for first in range(0, lengths.size, step):
        last = min(first + step, lengths.size)
        rows = np.repeat(weights[first:last], lengths[first:last], axis=0)
        coder.code(values[ends[first] : ends[last]], rows)


@dataclass(frozen=True)
class _LineBlock:
    """A block of some lines: `lengths` symbols of each, at `index`, or at `block` of each."""

    active: np.ndarray
    lengths: np.ndarray
    block: slice
    index: np.ndarray | None


class _LineSymbols:
    """The symbols of all lines; quicker where these have one length."""

    def __init__(self, symbols: np.ndarray, lines: Lines) -> None:
        self.symbols, self.counts = symbols, lines.counts
        self.starts = np.cumsum(self.counts) - self.counts
        self.matrix: np.ndarray | None = None
        if self.counts.size and bool((self.counts == self.counts[0]).all()):
            self.matrix = symbols.reshape(self.counts.size, int(self.counts[0]))

    def run(self, active: np.ndarray, block: slice) -> _LineBlock:
        """That part of the lines `active` which lies in `block`."""
        lengths = np.minimum(self.counts[active], block.stop) - block.start
        if self.matrix is not None:
            return _LineBlock(active, lengths, block, None)
        ends = np.cumsum(lengths)
        first = self.starts[active] + block.start
        index = np.arange(ends[-1]) + np.repeat(first - ends + lengths, lengths)
        return _LineBlock(active, lengths, block, index)

    def take(self, run: _LineBlock) -> np.ndarray:
        """The symbols of `run`, line after line."""
        if self.matrix is not None:
            return np.asarray(self.matrix[run.active, run.block].reshape(-1))
        return np.asarray(self.symbols[run.index])

    def put(self, run: _LineBlock, values: np.ndarray) -> None:
        """Set the symbols of `run`."""
        if self.matrix is not None:
            self.matrix[run.active, run.block] = values.reshape(run.active.size, -1)
        else:
            self.symbols[run.index] = values


class _LineModels:
    """What the blocks so far have taught."""

    def __init__(self, lines: int, alphabet: int, blend: Blend) -> None:
        self.alphabet, self.trust = alphabet, blend.trust
        self.magnitude = np.abs(2 * np.arange(alphabet) - blend.centre).astype(np.uint16)
        self.largest = int(self.magnitude.max()) + 1
        self.average = int(self.magnitude.sum()) // alphabet + 1
        self.class_weights = np.full((_CLASSES + 1, alphabet), 6, np.int64)
        self.sums = np.zeros(lines, np.int64)
        self.seen = np.zeros(lines, np.int64)
        self.own = np.zeros((lines if blend.trust else 0, alphabet), np.int64)

    def classes(self, active: np.ndarray) -> np.ndarray:
        """How large the symbols of each line have been: 1 to 8; 0 where there were none."""
        mean = (2 * self.sums[active] + self.average) * _CLASSES
        scaled = mean // ((2 * self.seen[active] + 1) * self.largest)
        known = 1 + np.minimum(scaled, _CLASSES - 1)
        return np.where(self.seen[active] > 0, known, 0)

    def own_weights(self, active: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The weights of each line's own distribution."""
        totals = self.class_weights.sum(axis=1, keepdims=True)
        prior = self.class_weights * _SCALE // totals + 1
        return np.asarray(self.own[active] * _SCALE + self.trust * prior[classes])

    def learn(
        self, values: np.ndarray, run: _LineBlock, kinds: np.ndarray, bounds: np.ndarray
    ) -> None:
        """Count the `values` of a run, whose lines are of one of `kinds` from bound to bound."""
        active, lengths = run.active, run.lengths
        ends = np.concatenate([[0], np.cumsum(lengths)])
        for kind, start, stop in zip(kinds, bounds[:-1], bounds[1:], strict=True):
            part = values[ends[start] : ends[stop]]
            self.class_weights[kind] += 16 * np.bincount(part, minlength=self.alphabet)
        if self.trust:
            cells = np.repeat(np.arange(active.size) * self.alphabet, lengths) + values
            counts = np.bincount(cells, minlength=active.size * self.alphabet)
            self.own[active] += counts.reshape(-1, self.alphabet)
        self.sums[active] += np.add.reduceat(self.magnitude[values], ends[:-1], dtype=np.int64)
        self.seen[active] += lengths
