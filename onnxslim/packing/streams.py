"""Streams of symbols: each is coded in several ways, and the smallest result is kept.

A coded stream has a head (coder, parameters, size of the body) and a body. All heads of a file are
compressed together; bodies are stored as they are.

Symbols may belong to *lines*: the weights of one input or of one output of a layer, whichever
predict each other better. Coders without a model for lines ignore them.

Owns: which coders are tried, and what a faster decoder may cost. Not here: the coders (see
`coders`) and their models (see `adaptive`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from onnxslim.errors import ModelError
from onnxslim.packing import coders
from onnxslim.packing.adaptive import MAX_CELLS, Blend, code_flat, code_lines, code_mask
from onnxslim.packing.coders import RangeCoder, RangeReader, RangeWriter
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
    found = [raw, _flat(symbols)]
    if counts is not None and counts.size * alphabet <= MAX_CELLS and alphabet > 1:
        found.append(_lines(symbols, alphabet, counts, max(weights, symbols.size)))
    best = smallest(found)
    # a model for each line decodes slowly: prefer the flat one where it is nearly as small
    is_dense = _is_dense(symbols.size, weights)
    if is_dense and found[1].nbytes <= (1 + _FAST_COSTS) * best.nbytes:
        best = found[1]
    # zstd and Huffman decode faster still, and zstd finds repetitions
    quick = [raw, _zstd(raw.body, best.nbytes)]
    if symbols.size > _TRIED or is_dense:
        quick.append(_coded(StreamCoding.HUFFMAN, coders.huffman(raw.body)))
    chosen = smallest(quick)
    if chosen.nbytes > best.nbytes + _allowance(symbols.size, best.nbytes, weights):
        chosen = best
    return replace(chosen, without_zstd=best.nbytes)


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


def _flat(symbols: np.ndarray) -> CodedStream:
    lowest, highest = int(symbols.min(initial=255)), int(symbols.max(initial=0))
    lowest = min(lowest, highest)
    # symbols 0, 64, 128, ..., then 1, 65, ...: each block samples the whole stream, so that the
    # counts of one block predict the next
    lanes = np.concatenate([symbols[start::_LANES] for start in range(_LANES)])
    lanes -= np.uint8(lowest)
    doubts = _DOUBTS if symbols.size <= _TRIED else _DOUBTS[1:]

    def coded(doubt: int) -> CodedStream:
        body = _written(lambda coder: code_flat(coder, lanes, highest - lowest + 1, doubt))
        return _coded(StreamCoding.FLAT, body, bytes([lowest, highest, doubt]))

    return smallest(map(coded, doubts))


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


def _lines(symbols: np.ndarray, alphabet: int, counts: np.ndarray, weights: int) -> CodedStream:
    def coded(centre: int, trust: int) -> CodedStream:
        blend = Blend(centre, trust)
        body = _written(lambda coder: code_lines(coder, symbols, counts, alphabet, blend))
        return _coded(StreamCoding.LINES, body, varint(centre) + bytes([trust]))

    # weights cluster around zero, so zero is taken to lie between the most frequent neighbours
    seen = np.bincount(symbols, minlength=alphabet)
    centre = 2 * int(np.argmax(seen[1:] + seen[:-1])) + 1
    best = coded(centre, 0)
    if symbols.size <= _TRIED:
        other = coded(alphabet - 1, 0)
        if other.nbytes < best.nbytes:
            best, centre = other, alphabet - 1
    if symbols.size <= _OWN_SHARE * weights or weights <= _OWN_ALWAYS:
        best = smallest((best, _climb(lambda trust: coded(centre, trust), symbols.size)))
    return best


def _climb(coded: Callable[[int], CodedStream], size: int) -> CodedStream:
    """The smallest of the results of `coded` over `_TRUSTS`, by hill climbing from the middle."""
    at = len(_TRUSTS) // 2
    best = coded(_TRUSTS[at])
    if size > _TRIED:
        return best
    for step in (-1, 1):
        for trust in _TRUSTS[at + step :: step]:
            found = coded(trust)
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

    def coded(trust: int) -> CodedStream:
        body = _written(lambda coder: code_mask(coder, mask.view(np.uint8), ones, trust))
        return _coded(StreamCoding.MASK, body, bytes([trust]))

    return smallest((gaps, _climb(coded, mask.size)))


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


def _written(encoding: Encoding) -> bytes:
    writer = RangeWriter()
    encoding(writer)
    return writer.finish()


def _coded(code: StreamCoding, body: bytes, parameters: bytes = b"") -> CodedStream:
    return CodedStream(bytes([code]) + parameters + varint(len(body)), body)


def _zstd(data: bytes, rival: int | None = None) -> CodedStream:
    """Code by zstd at its best level, unless a fast try shows that the time is not worth it.

    Args:
        data: the bytes to code.
        rival: size in bytes by the best other coder.
    """
    worth = len(data) if rival is None else _ZSTD_GAIN * rival
    if len(data) > _ZSTD_ALWAYS:
        quick = coders.zstd(data, coders.FAST)
        if len(quick) >= 0.999 * len(data) or len(quick) > worth:
            return _coded(StreamCoding.ZSTD, quick)
    return _coded(StreamCoding.ZSTD, coders.zstd(data))


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
