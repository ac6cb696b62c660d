"""Floors as much stricter as an answer missed by."""

from __future__ import annotations

import pytest

from onnxslim.pipeline.floors import Floors, share_used
from onnxslim.records import OutputKind
from onnxslim.services.calibration import OutputDistance
from onnxslim.tuning.confirmation import stricter

FIGURES = OutputDistance(OutputKind.VALUES, 32.0, None, None, None, None, None, None)


def test_stricter_floors_allow_as_much_less_as_the_answer_missed_by() -> None:
    floors = Floors(min_sqnr_db=30.0, max_drop=1.0)
    use = share_used(floors, [FIGURES], drop=0.4)
    assert use == pytest.approx(10**-0.2)
    found = stricter(floors, use, 2 * use)
    assert found is not None
    assert share_used(found, [FIGURES], drop=0.4) == pytest.approx(2 / 0.9 * use)
    assert found.max_drop == pytest.approx(0.45)


def test_an_answer_that_failed_or_held_needs_no_stricter_floors() -> None:
    floors = Floors(min_sqnr_db=30.0)
    assert stricter(floors, 0.5, float("inf")) is None
    assert stricter(floors, 0.5, 0.9) is None


def test_every_floor_is_tightened_by_the_same_share() -> None:
    floors = Floors(1.0, 0.9, 30.0, 0.99, 0.9, 0.1, 0.5)
    found = floors.tightened(0.5)
    assert found.named == pytest.approx(
        {
            "max-drop": 0.5,
            "min-agreement": 0.95,
            "min-sqnr": 33.0103,
            "min-cosine": 0.995,
            "min-row-cosine": 0.95,
            "max-kl": 0.05,
            "max-row-kl": 0.25,
        }
    )
