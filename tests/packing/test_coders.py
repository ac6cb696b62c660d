"""The coders of packed files: exact sizes, a range coder as docs/packed_format.md describes it."""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import ModelError
from onnxslim.packing import coders
from onnxslim.packing.coders import RangeReader, RangeWriter
from onnxslim.packing.fields import FieldReader, varint

BYTES = st.binary(max_size=3000)
TOP, WORD = 1 << 64, 1 << 32


class PlainReader:
    """The range decoder, written from the description of the format."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.low, self.range = 0, TOP - 1
        self.point = self.word() * WORD + self.word()

    def word(self) -> int:
        taken = self.data[self.at : self.at + 4].ljust(4, b"\0")
        self.at += 4
        return int.from_bytes(taken, "big")

    def symbol(self, weights: list[int]) -> int:
        edges = fixed_point(weights)
        scale = self.range >> 24
        quantile = (self.point - self.low) % TOP // scale
        found = max(i for i in range(len(weights)) if edges[i] <= quantile)
        self.low = (self.low + scale * edges[found]) % TOP
        self.range = scale * (edges[found + 1] - edges[found])
        if self.range < WORD:
            self.low = self.low * WORD % TOP
            self.range *= WORD
            self.point = (self.point * WORD + self.word()) % TOP
        return found


def fixed_point(weights: list[int]) -> list[int]:
    """Where each symbol begins among 2^24 places, and the end."""
    total = float(sum(weights))
    scale = (2.0**24 - len(weights)) / total
    edges, seen = [], 0.0
    for number, weight in enumerate(weights):
        edges.append(int(seen * scale) + number)
        seen += weight
    return [*edges, 1 << 24]


@pytest.mark.slow
@settings(deadline=None)
@given(BYTES, st.integers(0, 300))
def test_zstd_and_huffman_give_back_what_they_got(data: bytes, repeat: int) -> None:
    long = data * repeat
    assert coders.unzstd(coders.zstd(long), len(long)) == long
    assert coders.unzstd(coders.zstd(long, words=True), len(long), words=True) == long
    assert coders.unhuffman(coders.huffman(long), len(long)) == long


@pytest.mark.parametrize("declared", [0, 999, 1001, 10**6])
@pytest.mark.parametrize(
    ("pack", "unpack"),
    [(coders.zstd, coders.unzstd), (coders.huffman, coders.unhuffman)],
    ids=["zstd", "huffman"],
)
def test_a_stream_of_another_size_than_declared_is_refused(pack, unpack, declared: int) -> None:
    packed = pack(bytes(1000))
    with pytest.raises(ModelError, match="does not hold the"):
        unpack(packed, declared)


@pytest.mark.parametrize("unpack", [coders.unzstd, coders.unhuffman])
def test_a_broken_stream_is_refused(unpack) -> None:
    with pytest.raises(ModelError):
        unpack(b"\xff\xfe\xfd\xfc" * 20, 100)


def test_the_dictionary_is_part_of_the_format_and_never_changes() -> None:
    data = resources.files("onnxslim.packing").joinpath("words-1.bin").read_bytes()
    assert hashlib.sha256(data).hexdigest() == DIGEST


DIGEST = "3e5cb4e178bef9f65d6361714b7bc81b8fbfaee1559e9997ad52d82ec29a31f9"


# ---------------------------------------------------------------------------- range coder


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray]]:
    """Runs of symbols, each with weights for all of them or for each."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        alphabet = draw(st.integers(2, 9))
        rng = np.random.default_rng(draw(st.integers(0, 10_000)))
        count = draw(st.integers(0, 40))
        shape = (count, alphabet) if draw(st.booleans()) else (alphabet,)
        weights = rng.integers(1, 1 << draw(st.integers(1, 40)), shape)
        found.append((rng.integers(0, alphabet, count).astype(np.uint8), weights))
    return found


@pytest.mark.slow
@settings(deadline=None)
@given(streams())
def test_the_range_coder_is_what_the_format_says(
    parts: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    writer = RangeWriter()
    for symbols, weights in parts:
        writer.code(symbols, weights)
    data = writer.finish()
    reader, plain = RangeReader(data), PlainReader(data)
    for symbols, weights in parts:
        found = np.zeros_like(symbols)
        reader.code(found, weights)
        np.testing.assert_array_equal(found, symbols)
        rows = np.broadcast_to(weights, (symbols.size, weights.shape[-1]))
        assert [plain.symbol(row.tolist()) for row in rows] == symbols.tolist()


def test_data_that_no_writer_wrote_are_refused() -> None:
    reader = RangeReader(b"\xff" * 40)
    with pytest.raises(ModelError, match="entropy-coded stream is broken"):
        reader.code(np.empty(200, np.uint8), np.array([1, 10_000]))


# ---------------------------------------------------------------------------- numbers


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63)))
def test_numbers_are_read_as_they_were_written(values: list[int]) -> None:
    reader = FieldReader(varint(*values), "the file")
    assert [reader.number() for _ in values] == values
    assert reader.left == 0


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 20])
def test_a_broken_number_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="the file"):
        FieldReader(data, "the file").number()


def test_a_number_above_its_bound_is_refused() -> None:
    with pytest.raises(ModelError, match="holds the number 300 where 299 is the most"):
        FieldReader(varint(300), "the file").number(299)
