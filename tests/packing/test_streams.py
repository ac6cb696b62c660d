"""Symbols, masks, positions and elements come back as they were, from every coder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import ModelError
from onnxslim.packing import coders
from onnxslim.packing.adaptive import Blend, code_flat, code_lines, code_mask, count_lines
from onnxslim.packing.coders import BitCounter, RangeReader, RangeWriter
from onnxslim.packing.elements import (
    ElementCoding,
    Elements,
    byte_planes,
    decode_elements,
    encode_elements,
)
from onnxslim.packing.fields import FieldReader, varint
from onnxslim.packing.streams import (
    CodedStream,
    CodingMethod,
    StreamCoding,
    StreamSource,
    decode_mask,
    decode_positions,
    decode_symbols,
    encode_mask,
    encode_positions,
    encode_symbols,
)

pytestmark = pytest.mark.slow

SEEDS = st.integers(0, 10_000)
METHODS = st.sampled_from(list(CodingMethod))


def source(coded: CodedStream) -> StreamSource:
    return StreamSource(FieldReader(coded.head, "the heads"), FieldReader(coded.body, "the bodies"))


def assert_all_read(source: StreamSource) -> None:
    assert (source.heads.left, source.bodies.left) == (0, 0)


def pruned(seed: int, rows: int, columns: int, levels: int = 8, zero: int = 3) -> np.ndarray:
    """Codes of a pruned layer: some columns keep much, some nothing."""
    rng = np.random.default_rng(seed)
    density = np.clip(rng.exponential(0.15, columns) - 0.02, 0, 1)
    codes = rng.binomial(levels - 1, 0.5, (rows, columns)).astype(np.uint8)
    return np.where(rng.random((rows, columns)) < density, codes, np.uint8(zero))


# ---------------------------------------------------------------------------- models


@settings(deadline=None)
@given(SEEDS, st.integers(1, 256), st.integers(0, 3000), st.integers(1, 20))
def test_one_distribution(seed: int, alphabet: int, count: int, doubt: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, alphabet, count).astype(np.uint8)
    writer = RangeWriter()
    code_flat(writer, symbols, alphabet, doubt)
    found = np.zeros_like(symbols)
    code_flat(RangeReader(writer.finish()), found, alphabet, doubt)
    np.testing.assert_array_equal(found, symbols)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 60), st.integers(1, 60), st.integers(1, 64))
def test_a_probability_for_each_line(seed: int, rows: int, columns: int, trust: int) -> None:
    mask = (pruned(seed, rows, columns) != 3).astype(np.uint8)
    ones = int(mask.sum())
    writer = RangeWriter()
    code_mask(writer, mask.copy(), ones, trust)
    found = np.zeros_like(mask)
    code_mask(RangeReader(writer.finish()), found, ones, trust)
    np.testing.assert_array_equal(found, mask)


@settings(deadline=None)
@given(
    SEEDS,
    st.lists(st.integers(0, 90), min_size=1, max_size=20),
    st.integers(2, 40),
    st.sampled_from([0, 4, 32]),
    st.booleans(),
)
def test_a_distribution_for_each_line(
    seed: int, counts: list[int], alphabet: int, trust: int, equal: bool
) -> None:
    lengths = np.array([counts[0]] * len(counts) if equal else counts, np.int64)
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, alphabet, int(lengths.sum())).astype(np.uint8)
    blend = Blend(int(rng.integers(0, 2 * alphabet)), trust)
    writer = RangeWriter()
    code_lines(writer, symbols.copy(), lengths, alphabet, blend)
    found = np.zeros_like(symbols)
    code_lines(RangeReader(writer.finish()), found, lengths, alphabet, blend)
    np.testing.assert_array_equal(found, symbols)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 60), st.integers(1, 300))
def test_what_is_counted_is_what_is_written(seed: int, rows: int, columns: int) -> None:
    codes = pruned(seed, rows, columns)
    lengths, mask = np.full(rows, columns), (codes != 3).astype(np.uint8)
    flat = codes.reshape(-1)
    counted = count_lines(flat, lengths, 8, 7, (0, 4, 32))
    for blend, nbytes in counted.items():
        writer = RangeWriter()
        code_lines(writer, flat, lengths, 8, blend)
        assert len(writer.finish()) == pytest.approx(nbytes, rel=1e-3, abs=8)
    for encode in (
        lambda coder: code_flat(coder, flat, 8, 6),
        lambda coder: code_mask(coder, mask, int(mask.sum()), 16),
        lambda coder: coder.code(flat, np.arange(1, 8 * flat.size + 1).reshape(-1, 8)),
    ):
        writer, counter = RangeWriter(), BitCounter()
        encode(writer)
        encode(counter)
        assert len(writer.finish()) == pytest.approx(counter.nbytes, rel=1e-3, abs=8)


@pytest.mark.parametrize("repeats", [False, True], ids=["independent codes", "repeated codes"])
def test_the_best_level_of_zstd_is_tried_where_it_can_win(
    repeats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, tried = 1 << 18, []
    codes = np.random.default_rng(0).binomial(31, 0.5, size).astype(np.uint8)
    if repeats:
        codes[size // 2 :] = codes[: size // 2]
    zstd = coders.zstd

    def recorded(data: bytes, level: int | None = None) -> bytes:
        tried.append((len(data), level))
        return zstd(data, level)

    monkeypatch.setattr(coders, "zstd", recorded)
    coded = encode_symbols(codes, 32, CodingMethod.ENTROPY, weights=size)
    assert ((size, None) in tried) is repeats
    assert (coded.head[0] == StreamCoding.ZSTD) is repeats
    np.testing.assert_array_equal(decode_symbols(source(coded), size, 32), codes)


def test_uneven_columns_are_coded_below_the_order_0_entropy() -> None:
    codes = pruned(0, 400, 300)
    kind = Elements(400, 300, 1, 8)
    counts = np.bincount(codes.reshape(-1))
    share = counts[counts > 0] / codes.size
    bound = -codes.size * float((share * np.log2(share)).sum()) / 8
    assert encode_elements(codes.reshape(-1), kind, CodingMethod.ENTROPY).nbytes < 0.9 * bound
    assert encode_elements(codes.reshape(-1), kind, CodingMethod.HUFFMAN).nbytes > bound


# ---------------------------------------------------------------------------- streams


@settings(deadline=None)
@given(SEEDS, st.integers(1, 256), st.integers(0, 2000), METHODS)
def test_symbols_come_back(seed: int, alphabet: int, count: int, method: CodingMethod) -> None:
    rng = np.random.default_rng(seed)
    symbols = rng.binomial(alphabet - 1, 0.3, count).astype(np.uint8)
    coded = encode_symbols(symbols, alphabet, method)
    reader = source(coded)
    np.testing.assert_array_equal(decode_symbols(reader, count, alphabet), symbols)
    assert_all_read(reader)
    assert coded.nbytes <= count + 6


@settings(deadline=None)
@given(SEEDS, st.integers(0, 40), st.integers(0, 400), METHODS)
def test_masks_come_back(seed: int, lines: int, length: int, method: CodingMethod) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((lines, length)) < rng.random()
    reader = source(encode_mask(mask, method))
    np.testing.assert_array_equal(decode_mask(reader, lines, length, int(mask.sum())), mask)
    assert_all_read(reader)


@settings(deadline=None)
@given(st.sets(st.integers(0, 5000)), METHODS)
def test_positions_come_back(places: set[int], method: CodingMethod) -> None:
    positions = np.array(sorted(places), np.int64)
    reader = source(encode_positions(positions, method))
    np.testing.assert_array_equal(decode_positions(reader, 5001, positions.size), positions)
    assert_all_read(reader)


@pytest.mark.parametrize(
    ("gaps", "end", "count"),
    [
        ([3, 3], 7, 2),  # past the end
        ([255, 255, 1], 500, 1),
        ([1, 1, 1], 100, 2),  # more than declared
        ([1], 100, 2),  # fewer
        ([1, 255], 1000, 1),  # an escape that leads nowhere
    ],
)
def test_gaps_that_run_past_the_end_or_lead_nowhere_are_refused(
    gaps: list[int], end: int, count: int
) -> None:
    body = bytes(gaps)
    head = (
        bytes([StreamCoding.GAPS])
        + varint(len(gaps))
        + bytes([StreamCoding.RAW])
        + varint(len(body))
    )
    with pytest.raises(ModelError, match=r"gaps do not lead|the most"):
        decode_positions(source(CodedStream(head, body)), end, count)


def test_a_symbol_outside_its_alphabet_is_refused() -> None:
    with pytest.raises(ModelError, match="the symbol 7 of 7"):
        decode_symbols(source(CodedStream(bytes([StreamCoding.RAW, 3]), b"\1\7\2")), 3, 7)


# ---------------------------------------------------------------------------- elements


def round_trip(array: np.ndarray, kind: Elements, method: CodingMethod) -> ElementCoding:
    coded = encode_elements(array, kind, method)
    reader = source(coded)
    found = decode_elements(reader, kind)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    assert_all_read(reader)
    return ElementCoding(coded.head[0])


@settings(deadline=None)
@given(SEEDS, st.integers(1, 30), st.integers(1, 40), st.integers(2, 200), METHODS)
def test_codes_come_back(
    seed: int, rows: int, columns: int, levels: int, method: CodingMethod
) -> None:
    codes = pruned(seed, rows, columns, levels, levels // 3)
    assert round_trip(codes.reshape(-1), Elements(rows, columns, 1, levels), method) in (
        ElementCoding.CODES,
        ElementCoding.SPARSE,
    )


@settings(deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 4, 8]), st.booleans(), st.booleans(), METHODS)
def test_bits_come_back(
    seed: int, itemsize: int, rotated: bool, sparse: bool, method: CodingMethod
) -> None:
    rng = np.random.default_rng(seed)
    array = np.frombuffer(rng.bytes(itemsize * 300), f"<u{itemsize}").copy()
    if sparse:
        array[rng.random(300) < 0.9] = 0
    form = round_trip(array, Elements(15, 20, itemsize, rotated=rotated), method)
    if sparse and itemsize == 8:
        assert form in (ElementCoding.SPARSE, ElementCoding.TABLE)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_few_distinct_floats_become_a_table(dtype: type[np.floating]) -> None:
    values = np.array([-1.5, -0.25, -0.0, 0.0, 0.5, np.inf, np.nan], dtype)
    weight = values[np.random.default_rng(0).integers(0, 7, 1000)]
    array = weight.view(f"<u{weight.itemsize}")
    kind = Elements(10, 100, weight.itemsize, rotated=True)
    assert round_trip(array, kind, CodingMethod.ENTROPY) is ElementCoding.TABLE


def test_the_exponent_of_a_float_lies_in_one_byte() -> None:
    values = np.array([1.0, -1.0, 2.0, -0.5], np.float32)
    planes = list(byte_planes(values.view(np.uint32), Elements(1, 4, 4, rotated=True)))
    assert planes[3].tolist() == [127, 127, 128, 126]
    assert planes[0].tolist() == [0, 1, 0, 1]
