from __future__ import annotations

from math import prod

import numpy as np
import pytest

from onnxslim.errors import UsageError
from onnxslim.limits import MOST_DRAWN_ENTRIES
from onnxslim.runtime.samples.input_sizes import check_shapes, other_sizes, size_plans
from onnxslim.runtime.session import Dim, TensorInfo


def info(name: str, shape: tuple[Dim, ...] | None) -> TensorInfo:
    return TensorInfo(name, "tensor(float)", np.dtype(np.float32), shape)


def test_same_symbol_has_the_same_size_everywhere() -> None:
    for plan in size_plans([info("a", ("N", "T")), info("b", ("T", "N", 3))], {}):
        assert plan["a"] == plan["b"][1::-1]


def test_fixed_sizes_stay_and_the_batch_is_one_first() -> None:
    first = next(size_plans([info("x", ("N", 3, None, None))], {}))
    assert first["x"] == (1, 3, 64, 64)
    assert next(size_plans([info("x", (None, None, None, 3))], {}))["x"] == (1, 64, 64, 3)


def test_names_of_axes_count_more_than_places() -> None:
    plan = next(size_plans([info("x", ("sequence", "batch_size", 16))], {}))
    assert plan["x"] == (8, 1, 16)
    assert next(size_plans([info("audio", ("samples",))], {}))["audio"] == (8,)
    assert next(size_plans([info("n", ("N",))], {}))["n"] == (1,)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1,)}, r"no input `z`.*`a`, `b`"),
        ({"a": (1, 2, 3)}, r"\[1, 2, 3\] for input `a`.*\[N, 3\]"),
        ({"a": (1, 4)}, r"\[1, 4\] for input `a`.*\[N, 3\]"),
        ({"a": (-1, 3)}, "negative"),
        ({"a": (1, 3), "b": (2,)}, r"`a` and `b` disagree on the size `N`: 1 and 2"),
    ],
)
def test_wrong_given_shape_is_refused_by_name(
    shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    inputs = [info("a", ("N", 3)), info("b", ("N",))]
    with pytest.raises(UsageError, match=message):
        check_shapes(inputs, shapes)


def test_other_sizes_change_what_is_open_and_first_everything() -> None:
    inputs = [info("x", ("N", 3, None, None)), info("m", ("N", "T", 4))]
    shapes = {"x": (1, 3, 64, 64), "m": (1, 8, 4)}
    assert list(other_sizes(inputs, shapes, {})) == [
        {"x": (2, 3, 96, 96), "m": (2, 12, 4)},
        {"x": (2, 3, 64, 64), "m": (2, 8, 4)},
    ]


def test_nothing_else_can_be_tried_where_all_is_fixed_or_given() -> None:
    assert list(other_sizes([info("x", (1, 3))], {"x": (1, 3)}, {})) == []
    assert list(other_sizes([info("x", ("N", 3))], {"x": (5, 3)}, {"x": (5, 3)})) == []


def test_a_state_beside_an_open_batch_has_its_batch_second() -> None:
    inputs = [info("x", (None, None)), info("state", (2, None, 128))]
    plans = list(size_plans(inputs, {}))
    assert [plan["state"][1] for plan in plans[:2]] == [1, 8]
    assert next(size_plans([info("x", (1, None, 80))], {}))["x"] == (1, 8, 80)


def test_a_guess_that_takes_every_axis_for_a_side_of_a_picture_is_passed_over() -> None:
    plans = list(size_plans([info("x", ("N", "a", "b", "c")), info("y", ("a", "N", "c", 2))], {}))
    entries = [sum(prod(shape) for shape in plan.values()) for plan in plans]
    assert len(plans) > 5
    assert max(entries) <= MOST_DRAWN_ENTRIES
    large = [info("x", (4096, 4096, "N", "c"))]
    assert len(list(size_plans(large, {}))) == 1
