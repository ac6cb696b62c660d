"""Arrays come back from a spool as they went in."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from layer_nets import samples

from onnxslim.graph.ir import to_numpy_dtype
from onnxslim.runtime.samples.spool import Spool

BFLOAT16 = to_numpy_dtype(16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_, np.int8, BFLOAT16])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_what_comes_back_is_what_went_in(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    given = [
        np.reshape(10 * samples(prod(shape), seed=seed), shape).astype(dtype) for seed in range(3)
    ]
    spool = Spool()
    for array in given:
        spool.append(array)
    for number in (2, 0, 1):
        found = spool[number]
        assert found.dtype == given[number].dtype
        np.testing.assert_array_equal(found, given[number])
    assert spool.shapes == [shape] * 3
    assert spool.nbytes == sum(array.nbytes for array in given)
    spool.close()


@pytest.mark.slow
def test_large_arrays_go_to_a_file() -> None:
    given = [samples(1 << 20, seed=seed) for seed in range(4)]
    spool = Spool()
    for array in given:
        spool.append(array.reshape(2, -1).T)  # not contiguous
    np.testing.assert_array_equal(spool[1], given[1].reshape(2, -1).T)
    spool.append(given[0])
    np.testing.assert_array_equal(spool[4], given[0])
    np.testing.assert_array_equal(spool[3], given[3].reshape(2, -1).T)
    spool.close()


def test_what_comes_back_can_be_written_to() -> None:
    spool = Spool()
    spool.append(np.ones(3))
    spool[0][:] = 5
    np.testing.assert_array_equal(spool[0], np.ones(3))
    spool.close()
