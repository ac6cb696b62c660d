from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.records import OutputKind
from onnxslim.report import Drift
from onnxslim.runtime.measure import drift, row_cosines
from onnxslim.runtime.measure.drift import DriftMeter
from onnxslim.runtime.measure.row_cosines import RowCosines


def measured(ref: object, new: object, kind: OutputKind = OutputKind.CLASSES) -> Drift:
    meter = DriftMeter(kind)
    meter.update(np.asarray(ref), np.asarray(new))
    return meter.result()


def direct(ref: np.ndarray, new: np.ndarray) -> Drift:
    """The same figures in one piece."""
    r, n = ref.astype(np.float64).reshape(-1), new.astype(np.float64).reshape(-1)
    gap = n - r
    equal = bool((ref == new).all())
    noise, signal = float(gap @ gap), float(r @ r)
    return Drift(
        max_abs=float(np.abs(gap).max()),
        rel_l2=0.0 if not noise else math.sqrt(noise / signal) if signal else math.inf,
        sqnr_db=math.inf if not noise else 10 * math.log10(signal / noise) if signal else -math.inf,
        cosine=1.0
        if not noise
        else float(r @ n / np.sqrt(signal * (n @ n)))
        if signal and n @ n
        else 0.0,
        agreement=float((ref.argmax(1) == new.argmax(1)).mean()),
        reference_range=float(r.max() - r.min()),
        equal_bits=equal,
        kind=OutputKind.CLASSES,
    )


def assert_same(a: Drift, b: Drift) -> None:
    for name in vars(a):
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, OutputKind) or right is None:
            assert left is right
            continue
        assert left == pytest.approx(right, rel=1e-9, abs=1e-12), name


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 12),
    noise=st.sampled_from([0.0, 1e-6, 0.1, 10.0]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    chunk=st.sampled_from([1, 7, 1 << 18]),
)
def test_streaming_agrees_with_direct_computation_for_every_split(
    seed: int, rows: int, noise: float, dtype: type, cuts: list[int], chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    ref = rng.standard_normal((rows, 5)).astype(dtype)
    new = (ref + noise * rng.standard_normal((rows, 5))).astype(dtype)
    meter = DriftMeter(OutputKind.CLASSES)
    edges = sorted({0, rows, *(min(cut, rows) for cut in cuts)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "_CHUNK", chunk)
        for start, stop in itertools.pairwise(edges):
            meter.update(ref[start:stop], new[start:stop])
    assert_same(meter.result(), direct(ref, new))


def test_equal_outputs_have_infinite_sqnr() -> None:
    x = np.array([[1.0, -2.0]], np.float32)
    assert measured(x, x.copy()) == Drift(
        0.0, 0.0, math.inf, 1.0, 1.0, 3.0, True, kind=OutputKind.CLASSES
    )


def test_twice_as_large_is_seen_relative_to_the_reference() -> None:
    ref = np.array([[1.0, 2.0]], np.float32)
    found = measured(ref, 2 * ref)
    assert found.rel_l2 == pytest.approx(1.0)
    assert found.cosine == pytest.approx(1.0)
    assert found.sqnr_db == pytest.approx(0.0)


def test_nan_equals_nan_whatever_its_bits() -> None:
    ref = np.array([0x7FC00000, 0x3F800000], np.uint32).view(np.float32)
    new = np.array([0xFFC00001, 0x3F800000], np.uint32).view(np.float32)
    found = measured(ref, new)
    assert found.equal_bits
    assert found.max_abs == 0.0


def test_same_infinities_are_equal_and_opposite_ones_are_not() -> None:
    assert measured([np.inf, 1.0], [np.inf, 1.0]).max_abs == 0.0
    meter = DriftMeter()
    meter.update(np.array([np.inf, 1.0]), np.array([-np.inf, 1.0]))
    assert (meter.lost, meter.turned) == (0, 1)
    assert meter.result().max_abs == math.inf


def test_new_nan_is_lost_and_makes_every_figure_infinite() -> None:
    meter = DriftMeter()
    meter.update(np.array([[1.0, 2.0]]), np.array([[np.nan, 2.0]]))
    found = meter.result()
    assert meter.lost == 1
    assert (found.max_abs, found.rel_l2, found.sqnr_db) == (math.inf, math.inf, -math.inf)
    assert found.reference_range == 1.0


def test_signs_of_zero_differ_in_bits_only() -> None:
    found = measured([0.0], [-0.0])
    assert not found.equal_bits
    assert found.max_abs == 0.0


def test_reference_of_zeros() -> None:
    found = measured([0.0, 0.0], [1.0, 0.0])
    assert (found.rel_l2, found.sqnr_db, found.cosine) == (math.inf, -math.inf, 0.0)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.int8])
def test_integers_and_booleans_are_counted_exactly(dtype: type) -> None:
    meter = DriftMeter()
    meter.update(np.array([0, 1, 1], dtype), np.array([0, 1, 0], dtype))
    assert meter.unequal == 1
    found = meter.result()
    assert found.max_abs == 1.0
    assert found.kind is OutputKind.DISCRETE
    assert found.agreement == pytest.approx(2 / 3)


def test_large_integers_that_float64_cannot_tell_apart_are_unequal() -> None:
    assert not measured([2**62], [2**62 + 1]).equal_bits


def test_strings_count_those_that_differ() -> None:
    found = measured(np.array(["a", "b"], object), np.array(["a", "c"], object))
    assert (found.max_abs, found.equal_bits) == (1.0, False)
    assert found.rel_l2 == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.complex64, np.complex128, np.float16])
def test_other_number_types_are_measured(dtype: type) -> None:
    ref = np.array([[1.0, 2.0]]).astype(dtype)
    new = np.array([[1.0, 4.0]]).astype(dtype)
    assert measured(ref, new).max_abs == 2.0
    assert measured(ref, ref).equal_bits


def test_top1_is_for_scores_only() -> None:
    ref = np.zeros((2, 3), np.float32)
    assert measured(ref, ref).agreement == 1
    assert measured(ref, ref, OutputKind.VALUES).agreement is None
    assert measured(ref, ref, OutputKind.EMBEDDING).agreement is None
    single = measured(ref[:, :1], ref[:, :1])
    assert (single.kind, single.agreement) == (OutputKind.VALUES, None)
    tokens = np.eye(4, dtype=np.float32).reshape(1, 4, 4)
    assert measured(tokens, tokens[:, ::-1]).agreement == 0.0


def test_collapsed_output_does_not_agree_by_ties() -> None:
    ref = np.array([[0, 1], [0, 1], [1, 0]], np.float32)
    assert measured(ref, np.zeros_like(ref)).agreement == pytest.approx(1 / 3)


def test_values_without_a_counterpart_are_unequal_where_values_are_discrete() -> None:
    meter = DriftMeter()
    meter.update(np.array([1, 2, 3]), np.array([1, 2, 4]))
    meter.unmatched += 1  # as the caller counts them
    meter.unequal += 1
    assert meter.result().agreement == pytest.approx(2 / 4)


def test_of_embeddings_the_direction_of_rows_counts() -> None:
    ref = np.array([[1.0, 0], [0, 2], [3, 3], [0, 0]], np.float32)
    new = np.array([[5.0, 0], [2, 0], [3, 0], [0, 0]], np.float32)
    found = measured(ref, new, OutputKind.EMBEDDING)
    cosines = [1, 0, math.sqrt(0.5), 1]  # a row of zeros that stays one has not turned
    assert found.mean_cosine == pytest.approx(np.mean(cosines))
    assert found.least_cosine == 0
    assert measured(ref, 2 * ref, OutputKind.EMBEDDING).mean_cosine == pytest.approx(1)
    assert measured(ref, new * np.nan, OutputKind.EMBEDDING).least_cosine == 0
    assert measured(ref, new).mean_cosine is None


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 40))
def test_cosines_are_the_same_for_every_split(seed: int, rows: int, chunk: int) -> None:
    ref, new = np.random.default_rng(seed).standard_normal((2, rows, 5)).astype(np.float32)
    lengths = np.linalg.norm(ref, axis=1) * np.linalg.norm(new, axis=1)
    expected = (ref * new).sum(axis=1) / lengths
    cosines = RowCosines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_cosines, "_CHUNK", chunk)
        cosines.update(ref[:2], new[:2])
        cosines.update(ref[2:], new[2:])
    assert cosines.mean == pytest.approx(expected.mean(), rel=1e-5, abs=1e-6)
    assert cosines.least == pytest.approx(expected.min(), rel=1e-5, abs=1e-6)


def test_empty_outputs_and_no_batches_are_no_difference() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert measured(empty, empty, OutputKind.VALUES) == DriftMeter().result()
    assert DriftMeter().result() == Drift(0.0, 0.0, math.inf, 1.0, None, 0.0, True)
