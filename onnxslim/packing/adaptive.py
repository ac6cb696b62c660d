"""Adaptive probability models for the range coder: no table of frequencies has to be stored.

Adaptive models count the symbols that were coded so far (Cleary and Witten 1984; Witten, Neal and
Cleary 1987). Here the counts are updated after each block of symbols, and blocks grow, so that
numpy does the work. The decoder has seen the same blocks and therefore has the same counts. Each
function serves both directions: with a writer or a counter it reads `symbols`, with a reader it
fills them. All arithmetic is in integers, so every machine computes the same probabilities.

    code_flat     one distribution for all symbols (order 0)
    code_mask     zeros and ones of a matrix, one probability for each line: how much a pruned layer
                  keeps of an input depends mostly on that input
    code_lines    symbols that belong to lines, one distribution for each line; its prior is the
                  distribution of all lines whose symbols have been about as large so far
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.packing.coders import RangeCoder

_FIRST: Final = 16  # symbols in the first block of `code_flat`
_MAX: Final = 1 << 20  # symbols in a block, at most
_GROWTH: Final = 4  # a block has a quarter of the symbols before it
_MASK_GROWTH: Final = 3  # a block has a third of the columns before it
_SCALE: Final = 1 << 16  # fixed-point one
_COUNT: Final = 16  # weight of one occurrence
_CLASSES: Final = 8  # of lines, by the mean magnitude of their symbols
_CLASS_PRIOR: Final = 6  # weight of each symbol in a class without symbols, in sixteenths
MAX_CELLS: Final = 1 << 23  # the most lines times alphabet, whose counts are kept in memory


def _growing(total: int, first: int, most: int, share: int) -> Iterator[slice]:
    """Consecutive blocks, each 1/`share` of all before it, but at least `first`, at most `most`."""
    start = 0
    while start < total:
        stop = min(start + max(first, min(start // share, most)), total)
        yield slice(start, stop)
        start = stop


# --------------------------------------------------------------------------- one distribution


def code_flat(coder: RangeCoder, symbols: np.ndarray, alphabet: int, doubt: int) -> None:
    """Code symbols below `alphabet` by one adaptive distribution.

    P(s) = (count(s) + doubt/16) / (n + alphabet·doubt/16): additive smoothing, where doubt = 8
    would be the estimator of Krichevsky and Trofimov (1981).

    Args:
        coder: the writer, the counter or the reader.
        symbols: uint8 (n,), read or filled.
        alphabet: number of symbols.
        doubt: prior count of every symbol, in sixteenths.
    """
    weights = np.full(alphabet, doubt, np.int64)
    for block in _growing(symbols.size, _FIRST, _MAX, _GROWTH):
        coder.code(symbols[block], weights)
        weights += _COUNT * np.bincount(symbols[block], minlength=alphabet)


# --------------------------------------------------------------------------- masks


def code_mask(coder: RangeCoder, mask: np.ndarray, ones: int, trust: int) -> None:
    """Code a matrix of zeros and ones, column after column, with one probability a line.

    P(1) = (ones so far + trust·mean) / (columns so far + trust), the estimate under a beta prior
    around the mean of the whole mask. Lines with about equally many ones so far share one estimate,
    so that few models are needed.

    Args:
        coder: the writer, the counter or the reader.
        mask: uint8 (lines, length), read or filled.
        ones: number of ones in the whole mask, which both ends know.
        trust: weight of the prior, in columns.
    """
    lines, length = mask.shape
    if not lines:
        return
    mean = min(max(ones * _SCALE // max(mask.size, 1), 1), _SCALE - 1)
    seen = np.zeros(lines, np.int64)
    for block in _growing(length, 1, max(_MAX // max(lines, 1), 1), _MASK_GROWTH):
        # lines by the number of ones so far; group i is order[bounds[i]:bounds[i + 1]]
        order, bounds = _groups(_level(seen))
        sums = np.add.reduceat(seen[order], bounds[:-1])
        sizes = np.diff(bounds)
        # the numerators of P(0) and P(1), times 2^16: the range coder needs only their ratio
        weights = np.empty((sizes.size, 2), np.int64)
        weights[:, 1] = sums * _SCALE + trust * mean * sizes
        weights[:, 0] = (block.start * sizes - sums) * _SCALE + trust * (_SCALE - mean) * sizes
        buffer = mask[order, block]  # a copy: its rows of one group lie together
        for group, start, stop in zip(
            weights, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True
        ):
            coder.code(buffer[start:stop].reshape(-1), group)
        mask[order, block] = buffer
        seen[order] += buffer.sum(axis=1, dtype=np.int64)


def _level(count: np.ndarray) -> np.ndarray:
    """A logarithmic scale: counts below 8 as they are, larger ones to their three leading bits."""
    _, exponent = np.frexp(count.astype(np.float64))
    shift = np.maximum(exponent.astype(np.int64) - 3, 0)
    return 4 * shift + (count >> shift)


def _groups(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A stable order that brings equal levels together, and the bounds of each run in it."""
    order = np.argsort(level, kind="stable")
    ordered = level[order]
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, np.concatenate([[0], edges, [level.size]])


# --------------------------------------------------------------------------- symbols of columns


@dataclass(frozen=True)
class Blend:
    """How the distribution of a line blends its own counts with those of its class.

    Attributes:
        centre: twice the symbol of smallest magnitude; the magnitude of a symbol s is
            |2s - centre|. Codes are in the order of their values, so this tells large from small.
        trust: weight of the class's distribution as a prior, in symbols of the line; 0: a line uses
            the distribution of its class alone.
    """

    centre: int
    trust: int


def code_lines(
    coder: RangeCoder, symbols: np.ndarray, counts: np.ndarray, alphabet: int, blend: Blend
) -> None:
    """Code symbols that belong to lines: the first of every line, then the next few, and so on.

    Args:
        coder: the writer or the reader.
        symbols: uint8, line after line; read or filled.
        counts: number of symbols of each line.
        alphabet: number of symbols.
        blend: how the distributions are computed.
    """
    models = _LineModels(counts.size, alphabet, blend.centre, owns=blend.trust > 0)
    stored = _LineSymbols(symbols, counts)
    for part in stored.blocks(models):
        values = stored.read(part)  # arbitrary while decoding: `code` overwrites them
        if blend.trust:
            coder.code_runs(values, part.lengths, models.own_weights(part, blend.trust))
        else:  # one call for all lines of a class
            lengths = np.add.reduceat(part.lengths, part.bounds[:-1])
            coder.code_runs(values, lengths, models.class_weights[part.kinds])
        stored.write(part, values)
        if not part.is_last:  # nobody needs what the last block would teach
            models.learn(part, models.symbol_counts(values, part))


def count_lines(
    symbols: np.ndarray, counts: np.ndarray, alphabet: int, centre: int, trusts: Sequence[int]
) -> Mapping[Blend, int]:
    """The bytes that `code_lines` would write with each value of `trust`, nearly, by one walk.

    Args:
        symbols: uint8, line after line.
        counts: number of symbols of each line.
        alphabet: number of symbols.
        centre: see `Blend`.
        trusts: see `Blend`.
    """
    bits = dict.fromkeys(trusts, 0.0)
    models = _LineModels(counts.size, alphabet, centre, owns=max(trusts) > 0)
    stored = _LineSymbols(symbols, counts)
    for part in stored.blocks(models):
        found = models.symbol_counts(stored.read(part), part)
        for trust, taken in zip(trusts, models.bits(part, found, trusts), strict=True):
            bits[trust] += taken
        models.learn(part, found)
    return {Blend(centre, trust): math.ceil(taken / 8) for trust, taken in bits.items()}


@dataclass(frozen=True)
class _LineBlock:
    """The symbols of some lines that lie in one block.

    Attributes:
        active, lengths: the numbers of the lines, and how many symbols each has in the block; lines
            of one class lie together.
        classes: the class of each line.
        bounds: lines bounds[i] to bounds[i + 1] are of one class.
        block: the places of the symbols in each line.
        index: their places among all symbols; None where all lines have one length.
        is_last: whether no line has symbols after the block.
    """

    active: np.ndarray
    lengths: np.ndarray
    classes: np.ndarray
    bounds: np.ndarray
    block: slice
    index: np.ndarray | None
    is_last: bool

    @property
    def kinds(self) -> np.ndarray:
        """The classes of the lines, each class once."""
        return np.asarray(self.classes[self.bounds[:-1]])


class _LineSymbols:
    """The symbols of all lines; a matrix where all lines have one length, which is faster."""

    def __init__(self, symbols: np.ndarray, counts: np.ndarray) -> None:
        self.symbols, self.counts = symbols, counts
        self.starts = np.cumsum(self.counts) - self.counts
        self.matrix: np.ndarray | None = None
        if self.counts.size and bool((self.counts == self.counts[0]).all()):
            self.matrix = symbols.reshape(self.counts.size, int(self.counts[0]))

    def blocks(self, models: _LineModels) -> Iterator[_LineBlock]:
        """The blocks in the order of coding, by the classes that `models` then tell."""
        longest = int(self.counts.max(initial=0))
        for block in _growing(longest, 1, max(_MAX // max(self.counts.size, 1), 1), _GROWTH):
            active = np.flatnonzero(self.counts > block.start)  # the lines that reach into it
            classes = models.classes(active)
            order, bounds = _groups(classes)
            active, classes = active[order], classes[order]
            lengths = np.minimum(self.counts[active], block.stop) - block.start
            index = None if self.matrix is not None else self._places(active, lengths, block)
            yield _LineBlock(active, lengths, classes, bounds, block, index, block.stop >= longest)

    def _places(self, active: np.ndarray, lengths: np.ndarray, block: slice) -> np.ndarray:
        """For each line, the consecutive places from the first one in the block on."""
        ends = np.cumsum(lengths)
        first = self.starts[active] + block.start
        return np.asarray(np.arange(ends[-1]) + np.repeat(first - ends + lengths, lengths))

    def read(self, part: _LineBlock) -> np.ndarray:
        """The symbols of `part`, line after line."""
        if self.matrix is not None:
            return np.asarray(self.matrix[part.active, part.block].reshape(-1))
        return np.asarray(self.symbols[part.index])

    def write(self, part: _LineBlock, values: np.ndarray) -> None:
        """Set the symbols of `part`."""
        if self.matrix is not None:
            self.matrix[part.active, part.block] = values.reshape(part.active.size, -1)
        else:
            self.symbols[part.index] = values


class _LineModels:
    """The counts of all classes and of all lines, from the blocks so far.

    Args:
        lines: number of lines.
        alphabet: number of symbols.
        centre: see `Blend`.
        owns: whether each line has counts of its own.
    """

    def __init__(self, lines: int, alphabet: int, centre: int, *, owns: bool) -> None:
        self.alphabet = alphabet
        self.magnitude = np.abs(2 * np.arange(alphabet) - centre).astype(np.int64)
        self.largest = int(self.magnitude.max()) + 1
        self.average = int(self.magnitude.sum()) // alphabet + 1
        self.class_weights = np.full((_CLASSES + 1, alphabet), _CLASS_PRIOR, np.int64)
        self.sums = np.zeros(lines, np.int64)
        self.seen = np.zeros(lines, np.int64)
        self.own = np.zeros((lines if owns else 0, alphabet), np.int64)

    def classes(self, active: np.ndarray) -> np.ndarray:
        """The class of each line: 1 to 8 by the mean magnitude of its symbols, 0 without symbols.

        One symbol of average magnitude is added to each mean, as its prior.
        """
        # _CLASSES · (sum + average/2) / ((n + 1/2) · largest), all times 2
        mean = (2 * self.sums[active] + self.average) * _CLASSES
        scaled = mean // ((2 * self.seen[active] + 1) * self.largest)
        known = 1 + np.minimum(scaled, _CLASSES - 1)
        return np.where(self.seen[active] > 0, known, 0)

    def own_weights(self, part: _LineBlock, trust: int) -> np.ndarray:
        """The distribution of each line: its own counts, and `trust` times that of its class."""
        totals = self.class_weights.sum(axis=1, keepdims=True)
        prior = self.class_weights * _SCALE // totals + 1
        return np.asarray(self.own[part.active] * _SCALE + trust * prior[part.classes])

    def symbol_counts(self, values: np.ndarray, part: _LineBlock) -> np.ndarray:
        """How often each line of `part` has each symbol (lines, alphabet), in its `values`."""
        size = part.active.size * self.alphabet
        # counts of (line, symbol) pairs by one bincount over their joint number
        cells = np.repeat(np.arange(0, size, self.alphabet), part.lengths) + values
        return np.bincount(cells, minlength=size).reshape(-1, self.alphabet)

    def bits(self, part: _LineBlock, counts: np.ndarray, trusts: Sequence[int]) -> Iterator[float]:
        """The information content of the symbols in `part`, for each value of `trust`.

        - log2 P is summed up over symbols, P = weight / sum of the weights; the weights are those
        of `own_weights`, taken only where a symbol occurs, and for 0 those of the class.
        """
        rows, symbols = np.nonzero(counts)
        times, classes = counts[rows, symbols], part.classes[rows]
        totals = self.class_weights.sum(axis=1)
        prior = self.class_weights * _SCALE // totals[:, None] + 1
        own = self.own[part.active[rows], symbols] * _SCALE if self.own.size else 0
        seen, shared = self.seen[part.active] * _SCALE, prior.sum(axis=1)[part.classes]
        for trust in trusts:
            if trust:
                weights, sums = own + trust * prior[classes, symbols], seen + trust * shared
            else:
                weights, sums = self.class_weights[classes, symbols], totals[part.classes]
            yield float(part.lengths @ np.log2(sums)) - float(times @ np.log2(weights))

    def learn(self, part: _LineBlock, counts: np.ndarray) -> None:
        """Add the `counts` (lines, alphabet) of the symbols in `part`."""
        self.class_weights[part.kinds] += _COUNT * np.add.reduceat(counts, part.bounds[:-1])
        if self.own.size:
            self.own[part.active] += counts
        self.sums[part.active] += counts @ self.magnitude
        self.seen[part.active] += part.lengths
