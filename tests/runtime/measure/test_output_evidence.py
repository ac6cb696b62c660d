from __future__ import annotations

import numpy as np
import pytest

from onnxslim.runtime.measure.output_evidence import output_notes, varying_share


def notes(*arrays: object, alone: bool = True) -> list[str]:
    return output_notes([{"y": np.asarray(array)} for array in arrays], alone=alone)


def test_outputs_that_vary_are_not_spoken_of() -> None:
    assert notes([1.0, 2.0], [1.0, 3.0]) == []
    assert notes([1.0], [1.0, 2.0]) == []  # no two of one shape
    assert notes(np.array(["a"], object), np.array(["b"], object)) == []


def test_outputs_that_do_not_vary_are() -> None:
    assert notes([0.0, 1.0], [0.0, 1.0]) == [
        "Output `y` was the same on all samples: it proves little."
    ]
    assert notes([0.0, 1.0], [0.0, 1.0], alone=False) == []
    many = np.zeros(40)
    other = many.copy()
    other[3] = 1
    assert notes(many, other) == ["Output `y` was the same on all samples in 97.5% of its values."]


def test_values_that_are_nan_are_counted() -> None:
    assert notes([np.nan, 1.0, 2.0, 3.0], [4.0, 1.0, 2.0, 3.0]) == [
        "Output `y` was NaN in 12.5% of its values, which prove nothing."
    ]
    assert notes([np.nan], [np.inf]) == [
        "Output `y` was NaN or infinite on all samples: it proves nothing."
    ]
    assert notes([], np.zeros((0,))) == ["Output `y` was empty on all samples: it proves nothing."]


def test_varying_share_counts_within_a_shape() -> None:
    assert varying_share([np.zeros(4), np.ones(4), np.zeros(3)]) == 1
    assert varying_share([np.zeros(4), np.eye(4)[0], np.eye(4)[1]]) == pytest.approx(0.5)
    assert varying_share([np.zeros(4)]) is None
