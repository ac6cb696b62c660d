"""Positions that only fill up a batch count in no figure but those of lossless steps."""

from __future__ import annotations

import numpy as np

from onnxslim.analysis.token_inputs import PaddingMask
from onnxslim.records import OutputKind
from onnxslim.runtime.measure.drift import DriftMeter
from onnxslim.runtime.measure.output_divergence import DivergenceMeter
from onnxslim.runtime.measure.padding import positions_that_count, split_rows

MASK = PaddingMask("mask", 0, "ids")
IDS = np.zeros((2, 3), np.int64)
COUNTS = np.array([[True, True, False], [True, False, False]])


def test_a_mask_says_which_positions_count() -> None:
    given = {"ids": IDS, "mask": COUNTS.astype(np.int64)}
    assert (positions_that_count(MASK, given) == COUNTS).all()
    turned = PaddingMask("mask", 1, "ids")
    assert (positions_that_count(turned, given) == ~COUNTS).all()
    assert positions_that_count(MASK, {"ids": IDS, "mask": np.ones_like(IDS)}) is None
    assert positions_that_count(None, given) is None
    assert positions_that_count(MASK, {"ids": IDS, "mask": np.zeros((2, 7))}) is None


def test_a_mask_begins_with_the_positions_of_a_cache() -> None:
    mask = PaddingMask("mask", 0, "ids", ("past", 2))
    before = np.zeros((2, 2), bool)
    given = {"ids": IDS, "mask": np.hstack([before, COUNTS]), "past": np.zeros((2, 1, 2, 4))}
    assert (positions_that_count(mask, given) == COUNTS).all()


def test_outputs_without_a_row_for_each_position_count_whole() -> None:
    for shape in ((2, 3), (2, 4, 5), (1, 2, 3, 4)):
        array = np.ones(shape)
        assert split_rows(array, COUNTS) == (array, None)
    kept, others = split_rows(np.ones((2, 3, 5)), COUNTS)
    assert others is not None
    assert (kept.shape, others.shape) == ((3, 5), (3, 5))


def test_positions_that_do_not_count_are_in_no_figure_of_a_lossy_step() -> None:
    rng = np.random.default_rng(0)
    ref = rng.normal(size=(2, 3, 8)).astype(np.float32)
    new = (ref + rng.normal(size=ref.shape) / 20).astype(np.float32)
    wild = np.where(COUNTS[:, :, None], new, -9 * ref)
    for kind in (OutputKind.HIDDEN_STATES, OutputKind.TOKEN_LOGITS, OutputKind.CLASSES):
        alone, masked = DriftMeter(kind), DriftMeter(kind)
        alone.update(ref[COUNTS], new[COUNTS])
        masked.update(ref, wild, COUNTS)
        own, found = alone.result(), masked.result()
        for figure in ("sqnr_db", "cosine", "agreement", "mean_cosine", "least_cosine"):
            assert getattr(own, figure) == getattr(found, figure)
        assert (own.mean_kl, own.largest_kl) == (found.mean_kl, found.largest_kl)
        assert found.max_abs == np.abs(wild - ref).max() > own.max_abs  # lossless steps are held to
        first, second = DivergenceMeter(kind), DivergenceMeter(kind)
        first.update(ref[COUNTS], new[COUNTS])
        second.update(ref, wild, COUNTS)
        assert first.figures == second.figures
        assert first.divergence == second.divergence


def test_values_lost_where_nothing_counts_are_lost_all_the_same() -> None:
    ref = np.ones((2, 3, 8), np.float32)
    meter = DriftMeter(OutputKind.HIDDEN_STATES)
    meter.update(ref, np.where(COUNTS[:, :, None], ref, np.nan).astype(np.float32), COUNTS)
    assert meter.lost == 24
    assert meter.result().max_abs == np.inf
