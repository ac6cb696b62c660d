"""The table of variants: what several changes leave, and what is chosen."""

from __future__ import annotations

import math

import pytest

from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.tuning.table import Variant, VariantTable

(STEP,) = parse_pipeline("prune-channels:ratio=0.5").passes


def variant(layer: str, left: float, error: float) -> Variant:
    return Variant(layer, STEP, error, round(1000 * (left - 1)), None, math.log(left))


def test_shares_that_several_changes_leave_multiply() -> None:
    table = VariantTable(1000)
    rows, columns = variant("rows", 0.5, 0.1), variant("columns", 0.5, 0.1)
    assert table.shares([rows, columns]) == (pytest.approx(0.25), None)
    assert table.shares([]) == (1, None)


def test_the_smallest_product_within_the_error_is_chosen() -> None:
    table = VariantTable(1000)
    for one in (variant("a", 0.5, 0.2), variant("a", 0.7, 0.1), variant("b", 0.8, 0.1)):
        table.add(one)
    chosen = table.within(0.2)
    left, _ = table.shares(chosen.values())
    assert left == pytest.approx(0.5)  # a alone, where 0.7 * 0.8 is the other choice
    assert table.within(0.0)["a"].step is None
