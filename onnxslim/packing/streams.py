"""Streams of symbols: of several ways to code each, the smallest is kept.

What an adaptive model would take is counted, and only the chosen one writes (see `BitCounter`).
A coded stream has a head (coder, parameters, size of the body) and a body. All heads of a file are
compressed together; bodies are stored as they are.

Symbols may belong to *lines*: the weights of one input or of one output of a layer, whichever
predict each other better. Coders without a model for lines ignore them.

Owns: which coders are tried, and what a faster decoder may cost. Not here: the coders (see
`coders`) and their models (see `adaptive`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from onnxslim.errors import ModelError
from onnxslim.packing import coders
from onnxslim.packing.adaptive import (
    MAX_CELLS,
    Blend,
    code_flat,
    code_lines,
    code_mask,
    count_lines,
)
from onnxslim.packing.coders import BitCounter, RangeCoder, RangeReader, RangeWriter
from onnxslim.packing.fields import FieldReader, varint


class CodingMethod(enum.StrEnum):
    """The values of `pack --coder`."""

    ENTROPY = "entropy"
    HUFFMAN = "huffman"
    ZSTD = "zstd"


class StreamCoding(enum.IntEnum):
    """How a stream is coded: the first byte of its head in the file."""

    RAW = 0
    ZSTD = 1
    HUFFMAN = 2
    FLAT = 3
    LINES = 4
    GAPS = 5
    MASK = 6


@dataclass(frozen=True)
class CodedStream:
    """One coded stream, or several in a row, as it is written to the file.

    Attributes:
        head, body: the heads of the streams, and their bodies, one after the other.
        without_zstd: size in bytes by the entropy coder, where zstd may have replaced it.
    """

    head: bytes
    body: bytes
    without_zstd: int | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes, before heads are compressed."""
        return len(self.head) + len(self.body)

    @property
    def entropy_bytes(self) -> int:
        """Size in bytes by the entropy coder alone."""
        return self.nbytes if self.without_zstd is None else self.without_zstd

    def __add__(self, other: CodedStream) -> CodedStream:
        entropy = self.entropy_bytes + other.entropy_bytes
        return CodedStream(self.head + other.head, self.body + other.body, entropy)


@dataclass(frozen=True)
class StreamSource:
    """The place from which coded streams are read."""

    heads: FieldReader
    bodies: FieldReader

    def code(self, *allowed: StreamCoding) -> StreamCoding:
        """The coding of the next stream.

        Raises:
            ModelError: it is not one of those `allowed`.
        """
        found = self.heads.byte()
        if found not in allowed:
            raise ModelError(f"a stream has the code {found}, which has no meaning here")
        return StreamCoding(found)

    def body(self) -> memoryview:
        """The body of the stream whose head has been read up to its size."""
        return self.bodies.take(self.heads.number())


Encoding = Callable[[RangeCoder], None]
_LEARNS: Final = 1 << 15  # symbols up to which adaptive models take no time that matters
_FAST_COSTS: Final = 0.06  # share of a stream's bytes that a much faster decoder may cost
_TRIED: Final = 1 << 20  # symbols up to which several settings are tried
# symbols for each weight up to which a distribution for each line decodes fast enough
_OWN_SHARE: Final = 0.3
_OWN_ALWAYS: Final = 1 << 20  # weights up to which it always does
_DOUBTS: Final = (1, 6)  # prior counts that are tried, in sixteenths
_TRUSTS: Final = (2, 4, 8, 16, 32, 64)  # weights of the prior that are tried
_LANES: Final = 64
_ESCAPE: Final = 255  # the symbol of a gap that goes on
_ZSTD_ALWAYS: Final = 1 << 14  # bytes up to which the best level is fast enough to be tried
_ZSTD_GAIN: Final = 1.2  # the most by which the best level is expected to beat the fast one
_ZSTD_WORTH: Final = 0.99  # share of the size by another coder below which zstd is worth its time
_ZSTD_PIECE: Final = 1 << 17  # bytes of a stream on which a slow level of zstd is tried
_ZSTD_SLOW: Final = 16  # a level nearly as good as the best, in half the time


# --------------------------------------------------------------------------- plain streams


def encode_symbols(
    symbols: np.ndarray,
    alphabet: int,
    method: CodingMethod,
    counts: np.ndarray | None = None,
    weights: int = 0,
) -> CodedStream:
    """Code symbols below `alphabet`, at most 256, each a byte.

    Args:
        symbols: uint8, line after line.
        alphabet: number of symbols.
        method: the coder to use; with ENTROPY, whichever is smallest.
        counts: number of symbols of each line, where lines may differ from each other.
        weights: number of weights that the stream helps to store: it bounds the time of decoding.
    """
    raw = _coded(StreamCoding.RAW, symbols.tobytes())
    if method is CodingMethod.ZSTD:
        return smallest((raw, _zstd(raw.body)))
    if method is CodingMethod.HUFFMAN:
        return smallest((raw, _coded(StreamCoding.HUFFMAN, coders.huffman(raw.body))))
    flat = _flat(symbols)
    best = flat
    if counts is not None and counts.size * alphabet <= MAX_CELLS and alphabet > 1:
        best = _least((flat, _lines(symbols, alphabet, counts, max(weights, symbols.size))))
    # a model for each line decodes slowly: prefer the flat one where it is nearly as small
    is_dense = _is_dense(symbols.size, weights)
    if is_dense and flat.nbytes <= (1 + _FAST_COSTS) * best.nbytes:
        best = flat
    # zstd and Huffman decode faster still, and zstd finds repetitions
    quick = [raw]
    if symbols.size > _TRIED or is_dense:
        quick.append(_coded(StreamCoding.HUFFMAN, coders.huffman(raw.body)))
    most = best.nbytes + _allowance(symbols.size, best.nbytes, weights)
    quick.append(_zstd(raw.body, min(most, smallest(quick).nbytes)))
    chosen = smallest(quick)
    if chosen.nbytes > most:
        chosen = smallest((raw, best.coded()))
    return replace(chosen, without_zstd=min(best.nbytes, raw.nbytes))


def _is_dense(size: int, weights: int) -> bool:
    """Whether a stream has a symbol for about every weight, and enough of them to take time."""
    return bool(weights) and size > _OWN_SHARE * weights and size >= _LEARNS


def _allowance(size: int, nbytes: int, weights: int) -> float:
    """How many more bytes a stream that decodes faster may take."""
    if weights and size <= _OWN_SHARE * weights:
        return 0.0  # few symbols for that many weights: decoding is fast anyway
    if _is_dense(size, weights):
        return _FAST_COSTS * nbytes
    if size <= _TRIED:
        return 0.0005 * nbytes
    # codes may be all that a weight has; a byte plane is one of several, so its own size counts
    return 0.01 * (nbytes if weights else size)


def decode_symbols(
    source: StreamSource, count: int, alphabet: int, counts: np.ndarray | None = None
) -> np.ndarray:
    """The `count` symbols of the next stream, uint8; each line has its own number in `counts`.

    Raises:
        ModelError: the stream is broken.
    """
    code = source.code(*_PLAIN, *((StreamCoding.LINES,) if counts is not None else ()))
    if code in _BYTES:
        symbols = np.frombuffer(_BYTES[code](source.body(), count), np.uint8)
        if symbols.size and int(symbols.max()) >= alphabet:
            raise ModelError(f"a stream holds the symbol {symbols.max()} of {alphabet}")
        return symbols
    symbols = np.empty(count, np.uint8)
    if code is StreamCoding.FLAT:
        return _read_flat(source, symbols, alphabet)
    assert counts is not None  # or the code would not be allowed
    if counts.size * alphabet > MAX_CELLS:
        raise ModelError(f"{counts.size:,} lines of {alphabet} symbols are too many")
    blend = Blend(source.heads.number(2 * alphabet), source.heads.byte())
    code_lines(RangeReader(source.body()), symbols, counts, alphabet, blend)
    return symbols


def _flat(symbols: np.ndarray) -> _Model:
    lowest, highest = int(symbols.min(initial=255)), int(symbols.max(initial=0))
    lowest = min(lowest, highest)
    # symbols 0, 64, 128, ..., then 1, 65, ...: each block samples the whole stream, so that the
    # counts of one block predict the next
    lanes = np.concatenate([symbols[start::_LANES] for start in range(_LANES)])
    lanes -= np.uint8(lowest)
    doubts = _DOUBTS if symbols.size <= _TRIED else _DOUBTS[1:]

    def of(doubt: int) -> _Model:
        return _model(
            StreamCoding.FLAT,
            bytes([lowest, highest, doubt]),
            lambda coder: code_flat(coder, lanes, highest - lowest + 1, doubt),
        )

    return _least(map(of, doubts))


def _read_flat(source: StreamSource, symbols: np.ndarray, alphabet: int) -> np.ndarray:
    lowest, highest, doubt = source.heads.take(3)
    if lowest > highest or highest >= alphabet or not doubt:
        raise ModelError(f"a stream has symbols from {lowest} to {highest} of {alphabet}")
    lanes = np.empty(symbols.size, np.uint8)
    code_flat(RangeReader(source.body()), lanes, highest - lowest + 1, doubt)
    lanes += np.uint8(lowest)
    at = 0
    for start in range(_LANES):
        target = symbols[start::_LANES]
        target[:] = lanes[at : at + target.size]
        at += target.size
    return symbols


def _lines(symbols: np.ndarray, alphabet: int, counts: np.ndarray, weights: int) -> _Model:
    # weights cluster around zero, so zero is taken to lie between the most frequent neighbours
    seen = np.bincount(symbols, minlength=alphabet)
    centres = [2 * int(np.argmax(seen[1:] + seen[:-1])) + 1]
    if symbols.size <= _TRIED:
        centres.append(alphabet - 1)
    trusts = [0]
    if symbols.size <= _OWN_SHARE * weights or weights <= _OWN_ALWAYS:
        trusts += _TRUSTS
    found: dict[Blend, int] = {}
    for centre in dict.fromkeys(centres):
        found.update(count_lines(symbols, counts, alphabet, centre, trusts))
    blend = min(found, key=lambda blend: found[blend])
    return _model(
        StreamCoding.LINES,
        varint(blend.centre) + bytes([blend.trust]),
        lambda coder: code_lines(coder, symbols, counts, alphabet, blend),
        found[blend],
    )


def _climb(of: Callable[[int], _Model], size: int) -> _Model:
    """The smallest of the results of `of` over `_TRUSTS`, by hill climbing from the middle."""
    at = len(_TRUSTS) // 2
    best = of(_TRUSTS[at])
    if size > _TRIED:
        return best
    for step in (-1, 1):
        for trust in _TRUSTS[at + step :: step]:
            found = of(trust)
            if found.nbytes >= best.nbytes:
                break
            best = found
    return best


# --------------------------------------------------------------------------- masks and positions


def encode_mask(mask: np.ndarray, method: CodingMethod) -> CodedStream:
    """Code which entries of `mask`, bool (lines, length), are set.

    The reader must know the shape and the number of set entries.
    """
    gaps = encode_positions(np.flatnonzero(mask), method)
    if method is not CodingMethod.ENTROPY or len(mask) > MAX_CELLS:
        return gaps
    ones = int(mask.sum())

    def of(trust: int) -> _Model:
        return _model(
            StreamCoding.MASK,
            bytes([trust]),
            lambda coder: code_mask(coder, mask.view(np.uint8), ones, trust),
        )

    best = _climb(of, mask.size)
    return gaps if gaps.nbytes <= best.nbytes else smallest((gaps, best.coded()))


def decode_mask(source: StreamSource, lines: int, length: int, ones: int) -> np.ndarray:
    """The mask, bool (lines, length).

    Raises:
        ModelError: the stream is broken, or has another number of ones.
    """
    code = source.code(StreamCoding.GAPS, StreamCoding.MASK)
    if code is StreamCoding.GAPS:
        mask = np.zeros(lines * length, bool)
        mask[_positions(source, lines * length, ones)] = True
        return mask.reshape(lines, length)
    trust = max(source.heads.byte(), 1)
    if lines > MAX_CELLS:
        raise ModelError(f"a mask has {lines:,} lines, and {MAX_CELLS:,} are the most")
    mask = np.empty((lines, length), bool)
    code_mask(RangeReader(source.body()), mask.view(np.uint8), ones, trust)
    if int(np.count_nonzero(mask)) != ones:
        raise ModelError(f"a mask has not the {ones:,} entries that are declared")
    return mask


def encode_positions(positions: np.ndarray, method: CodingMethod) -> CodedStream:
    """Code ascending positions as gaps: a gap g is g // 255 symbols 255, and one of g % 255."""
    gaps = np.diff(positions, prepend=-1) - 1
    lengths = gaps // _ESCAPE + 1  # symbols of each gap
    ends = np.cumsum(lengths)
    symbols = np.full(int(ends[-1]) if ends.size else 0, _ESCAPE, np.uint8)
    symbols[ends - 1] = gaps % _ESCAPE
    head = CodedStream(bytes([StreamCoding.GAPS]) + varint(symbols.size), b"")
    return head + encode_symbols(symbols, 256, method)


def decode_positions(source: StreamSource, end: int, count: int) -> np.ndarray:
    """`count` ascending positions below `end`, int64.

    Raises:
        ModelError: the stream is broken, or a gap runs past the end.
    """
    source.code(StreamCoding.GAPS)
    return _positions(source, end, count)


def _positions(source: StreamSource, end: int, count: int) -> np.ndarray:
    size = source.heads.number(count + end // _ESCAPE)
    symbols = decode_symbols(source, size, 256)
    ends = np.flatnonzero(symbols != _ESCAPE)
    # a position is the sum of the gaps up to it, and one for each position before it
    reached = np.cumsum(symbols, dtype=np.int64)
    positions = reached[ends] + np.arange(ends.size)
    if ends.size != count or (count and (ends[-1] != size - 1 or int(positions[-1]) >= end)):
        raise ModelError(f"gaps do not lead to {count:,} positions below {end:,}")
    return positions


# --------------------------------------------------------------------------- shared


@dataclass(frozen=True)
class _Model:
    """An adaptive model of a stream, that has counted what it takes and written nothing yet.

    Attributes:
        code, parameters: the head, without the size of the body.
        encoding: what walks over the symbols.
        nbytes: size in bytes of the coded stream, nearly.
    """

    code: StreamCoding
    parameters: bytes
    encoding: Encoding
    nbytes: int

    def coded(self) -> CodedStream:
        """The stream, written."""
        writer = RangeWriter()
        self.encoding(writer)
        return _coded(self.code, writer.finish(), self.parameters)


def _model(
    code: StreamCoding, parameters: bytes, encoding: Encoding, nbytes: int | None = None
) -> _Model:
    """The model, after counting what `encoding` takes unless that is known to be `nbytes`."""
    if nbytes is None:
        counter = BitCounter()
        encoding(counter)
        nbytes = counter.nbytes
    return _Model(code, parameters, encoding, 1 + len(parameters) + len(varint(nbytes)) + nbytes)


def _least(models: Iterable[_Model]) -> _Model:
    """The model of fewest bytes; the first of equals."""
    return min(models, key=lambda model: model.nbytes)


def _coded(code: StreamCoding, body: bytes, parameters: bytes = b"") -> CodedStream:
    return CodedStream(bytes([code]) + parameters + varint(len(body)), body)


def _zstd(data: bytes, rival: float | None = None) -> CodedStream:
    """Code by zstd at its best level, unless that is not expected to beat a rival.

    Args:
        data: the bytes to code.
        rival: size in bytes by the best other coder; None: the bytes as they are.
    """
    if len(data) > _ZSTD_ALWAYS:
        quick = coders.zstd(data, coders.FAST)
        most = 0.999 * len(data) if rival is None else _ZSTD_WORTH * min(rival, len(data))
        if len(quick) > _ZSTD_GAIN * most or expected_zstd(data, len(quick)) >= most:
            return _coded(StreamCoding.ZSTD, quick)
    return _coded(StreamCoding.ZSTD, coders.zstd(data))


def expected_zstd(data: bytes | memoryview, quick: int | None = None) -> float:
    """The size in bytes that zstd's best level is expected to reach, within a few percent.

    The best level takes a hundred times as long as the fast one. What it gains is seen on a piece
    from the middle, beside the order-0 entropy, and beside the fast level, which finds what repeats
    at a distance.

    Args:
        data: the bytes to code.
        quick: their size by the fast level; None: not known.
    """
    reached = len(coders.zstd(data, coders.FAST)) if quick is None else quick
    piece = data[max(len(data) - _ZSTD_PIECE, 0) // 2 :][:_ZSTD_PIECE]
    gained = len(coders.zstd(piece, _ZSTD_SLOW))
    by_level = gained / len(coders.zstd(piece, coders.FAST))
    by_entropy = gained / max(order0_bytes(piece), 1)
    return min(reached * by_level, order0_bytes(data) * by_entropy)


def order0_bytes(symbols: np.ndarray | bytes | memoryview) -> int:
    """The order-0 entropy of symbols of a byte each, in bytes."""
    return order0_of(np.bincount(np.frombuffer(symbols, np.uint8), minlength=256))


def order0_of(counts: np.ndarray) -> int:
    """The order-0 entropy of symbols that occur so often, in bytes."""
    known = counts[counts > 0]
    total = int(known.sum())
    return math.ceil(float((known * np.log2(total / known)).sum()) / 8) if total else 0


def smallest(options: Iterable[CodedStream]) -> CodedStream:
    """The option of fewest bytes; the first of equals."""
    return min(options, key=lambda option: option.nbytes)


def _raw(body: memoryview, nbytes: int) -> bytes | memoryview:
    if len(body) != nbytes:
        raise ModelError(f"a stream has {len(body):,} bytes where {nbytes:,} are declared")
    return body


_BYTES: Final[Mapping[StreamCoding, Callable[[memoryview, int], bytes | memoryview]]] = {
    StreamCoding.RAW: _raw,
    StreamCoding.ZSTD: coders.unzstd,
    StreamCoding.HUFFMAN: coders.unhuffman,
}
_PLAIN: Final = (*_BYTES, StreamCoding.FLAT)
