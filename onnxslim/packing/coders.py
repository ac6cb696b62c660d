"""Entropy coders: zstd, Huffman, and a range coder for the probability models of `adaptive`.

Each decoder is told how many bytes or symbols to return. It never returns more, and it refuses
input that holds more or less.

The range coder (Martin 1979) is the one of the library constriction (Bamler 2022), with words of 32
bits and a state of 64. `RangeWriter` and `RangeReader` have the same methods, so that one function
which walks over symbols and adapts its model serves both directions. `BitCounter` has them too: it
tells how many bytes a `RangeWriter` would take, in a fraction of the time, so that models can be
compared before one of them is used. Probabilities are given as integers, which float64 holds
exactly: every machine computes the same bits.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final

import numpy as np

from onnxslim.errors import ModelError

if TYPE_CHECKING:
    import zstandard

SymbolWeights = np.ndarray
_ROW_ITEMS: Final = 1 << 22  # weights passed to constriction at a time
_OWN_MODEL: Final = 24  # symbols of a run from which one model is faster than a row for each
_WINDOW: Final = 1 << 27  # bytes: the largest window of a zstd frame
BEST: Final = 19
FAST: Final = 3


# --------------------------------------------------------------------------- zstd


def level_for(nbytes: int) -> int:
    """The zstd level for so many bytes: the best for all but the largest tensors."""
    if nbytes <= 16 << 20:
        return BEST
    return 12 if nbytes <= 64 << 20 else 9


def zstd(data: bytes | memoryview, level: int | None = None, *, words: bool = False) -> bytes:
    """A zstd frame without magic number, content size and checksum: the container has its own.

    Args:
        data: the bytes to compress.
        level: 1 to 22; None: by size.
        words: use the dictionary of phrases that are frequent in ONNX files.
    """
    import zstandard

    chosen = level_for(len(data)) if level is None else level
    parameters = zstandard.ZstdCompressionParameters.from_level(
        chosen,
        source_size=len(data),
        dict_size=len(_words()) if words else 0,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    compressor = zstandard.ZstdCompressor(
        compression_params=parameters, dict_data=_words() if words else None
    )
    return compressor.compress(data)


def unzstd(frame: bytes | memoryview, nbytes: int, *, words: bool = False) -> bytes:
    """The `nbytes` bytes in a frame of `zstd`.

    Raises:
        ModelError: the frame is broken, or holds more or less.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor(
        dict_data=_words() if words else None,
        max_window_size=_WINDOW,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
    )
    try:
        with decompressor.stream_reader(bytes(frame)) as stream:
            data = stream.read(nbytes)
            surplus = stream.read(1)
    except zstandard.ZstdError as error:
        raise ModelError(f"a zstd frame is broken ({error})") from error
    if len(data) != nbytes or surplus:
        raise ModelError(f"a zstd frame does not hold the {nbytes:,} bytes that are declared")
    return data


@cache
def _words() -> zstandard.ZstdCompressionDict:
    import zstandard

    data = resources.files("onnxslim.packing").joinpath("words-1.bin").read_bytes()
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


# --------------------------------------------------------------------------- Huffman


def huffman(data: bytes | memoryview) -> bytes:
    """Bytes coded one by one with Huffman codes: raw deflate without matches."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return compressor.compress(data) + compressor.flush()


def unhuffman(packed: bytes | memoryview, nbytes: int) -> bytes:
    """The `nbytes` bytes that `huffman` coded.

    Raises:
        ModelError: they are broken, or more or less.
    """
    decompressor = zlib.decompressobj(-15)
    try:
        data = decompressor.decompress(packed, nbytes + 1)
    except zlib.error as error:
        raise ModelError(f"a Huffman stream is broken ({error})") from error
    if len(data) != nbytes or not decompressor.eof or decompressor.unused_data:
        raise ModelError(f"a Huffman stream does not hold the {nbytes:,} bytes that are declared")
    return data


# --------------------------------------------------------------------------- range coder


class RangeCoder(ABC):
    """Either end of a range coder, or what only counts."""

    @abstractmethod
    def code(self, symbols: np.ndarray, weights: SymbolWeights) -> None:
        """Write `symbols`, or read as many into `symbols`.

        Args:
            symbols: one-dimensional, of any integer type; overwritten when reading.
            weights: integers of at least 1, proportional to the probabilities: of each symbol (L,),
                or of each symbol for each entry (n, L).
        """

    def code_runs(self, symbols: np.ndarray, lengths: np.ndarray, weights: SymbolWeights) -> None:
        """Code consecutive runs of symbols, each by its own weights.

        Long runs take one model each; short ones share a call, with a row of weights for each
        symbol. Both give the same bits.

        Args:
            symbols: as in `code`.
            lengths: the number of symbols in each run (R,).
            weights: of each symbol for each run (R, L).
        """
        longest = int(lengths.max())
        ends = np.concatenate([[0], np.cumsum(lengths)])
        if longest >= _OWN_MODEL:
            for start, stop, row in zip(
                ends[:-1].tolist(), ends[1:].tolist(), weights, strict=True
            ):
                self.code(symbols[start:stop], row)
            return
        step = max(_ROW_ITEMS // (weights.shape[1] * longest), 1)
        for first in range(0, lengths.size, step):
            last = min(first + step, lengths.size)
            rows = np.repeat(weights[first:last], lengths[first:last], axis=0)
            self.code(symbols[ends[first] : ends[last]], rows)


class BitCounter(RangeCoder):
    """Sums up the information content of symbols, and writes nothing.

    A `RangeWriter` takes that many bits, up to its rounding of probabilities to 24 bits and of the
    end to whole bytes.
    """

    def __init__(self) -> None:
        self.bits = 0.0

    @property
    def nbytes(self) -> int:
        """The size in bytes that a `RangeWriter` would return, nearly."""
        return int(-(-self.bits // 8))

    def code(self, symbols: np.ndarray, weights: SymbolWeights) -> None:
        """See `RangeCoder`."""
        # - log2 P of each symbol, P = weight / sum of the weights
        if weights.ndim == 1:
            counts = np.bincount(symbols, minlength=weights.size)
            self.bits += symbols.size * np.log2(weights.sum(dtype=np.float64))
            self.bits -= float(counts @ np.log2(weights))
        else:
            own = np.take_along_axis(weights, symbols[:, None].astype(np.intp), axis=1)
            self.bits += float(np.log2(weights.sum(axis=1, dtype=np.float64)).sum())
            self.bits -= float(np.log2(own).sum())


class RangeWriter(RangeCoder):
    """The encoder; `finish` returns the bytes."""

    def __init__(self) -> None:
        from constriction import stream

        self._model = stream.model.Categorical
        self._each = stream.model.Categorical(perfect=False)
        self._encoder = stream.queue.RangeEncoder()

    def code(self, symbols: np.ndarray, weights: SymbolWeights) -> None:
        """See `RangeCoder`."""
        if not symbols.size or weights.shape[-1] == 1:  # a sure symbol takes no bits
            return
        values = symbols.astype(np.int32)
        if weights.ndim == 1:
            self._encoder.encode(values, self._model(weights.astype(np.float64), perfect=False))
        else:
            self._encoder.encode(values, self._each, weights.astype(np.float64))

    def finish(self) -> bytes:
        """All bytes that were written, without trailing zeros, which the reader adds again."""
        whole = self._encoder.get_compressed().astype(">u4").tobytes()
        words, (low, span) = self._encoder.pos()
        return _shortest(whole, 4 * words + 8, low, span).rstrip(b"\0")


def _shortest(data: bytes, size: int, low: int, span: int) -> bytes:
    """The fewest bytes that decode as `data` does.

    The decoder reads `data` as a binary fraction, padded with zeros to `size` bytes. The interval
    of the last symbol is [low, low + span) in its last 64 bits, and any fraction inside it decodes
    alike. So the fraction with the most trailing zeros is taken, whose zeros need not be stored.
    """
    kept = max(size - 16, 0)
    tail = size - kept  # bytes that may change: the last 8, and those before that a carry reaches
    point = int.from_bytes(data[kept:size].ljust(tail, b"\0"), "big")
    start = point - (point - low) % (1 << 64)  # the low end of the interval, with carries
    if not start <= point < start + span:
        return data  # `low` and `span` do not mean what they did; `data` itself is right
    for bits in range(8 * tail, 0, -8):  # try the most zero bytes first: round `start` up
        rounded = -(-start >> bits) << bits
        if rounded < start + span and rounded >> (8 * tail) == 0:
            return data[:kept] + rounded.to_bytes(tail, "big")
    return data


class RangeReader(RangeCoder):
    """The decoder of what `RangeWriter` wrote, given the same weights in the same order."""

    def __init__(self, data: bytes | memoryview) -> None:
        from constriction import stream

        self._model = stream.model.Categorical
        self._each = stream.model.Categorical(perfect=False)
        padded = bytes(data) + bytes(-len(data) % 4)
        self._decoder = stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def code(self, symbols: np.ndarray, weights: SymbolWeights) -> None:
        """See `RangeCoder`.

        Raises:
            ModelError: the data cannot come from a `RangeWriter`.
        """
        if not symbols.size or weights.shape[-1] == 1:
            symbols[:] = 0
            return
        try:
            if weights.ndim == 1:
                model = self._model(weights.astype(np.float64), perfect=False)
                symbols[:] = self._decoder.decode(model, symbols.size)
            else:
                symbols[:] = self._decoder.decode(self._each, weights.astype(np.float64))
        except AssertionError as error:  # so constriction reports invalid data
            raise ModelError("an entropy-coded stream is broken") from error
