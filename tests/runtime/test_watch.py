"""Runs that take more than they may."""

from __future__ import annotations

import time

import numpy as np
import onnxruntime as ort
import pytest

from onnxslim.runtime.watch import Watch, _process_bytes


@pytest.mark.skipif(not _process_bytes(), reason="the system does not tell")
def test_a_run_that_takes_memory_is_told_to_end() -> None:
    options = ort.RunOptions()
    with Watch(options, 60, nbytes=16 << 20) as watch:
        held = np.ones(8 << 20)
        end = time.monotonic() + 30
        while not options.terminate and time.monotonic() < end:
            time.sleep(0.005)
    assert held[0] == 1
    assert options.terminate
    assert watch.reason == "took more than 16,777,216 bytes of memory"


def test_a_run_within_its_limits_goes_on_and_one_without_limits_is_not_watched() -> None:
    for seconds in (60, None):
        options = ort.RunOptions()
        with Watch(options, seconds, nbytes=1 << 40) as watch:
            time.sleep(0.05)
        assert not options.terminate
        assert watch.reason == ""
