"""The quick lane: `pytest -m quick` stops each test where onnxruntime or a process would start.

Every test is quick unless it is marked `slow`, so there is no list to keep. In the lane a test runs
up to the first onnxruntime session or subprocess, and is reported as skipped there: a golden test
of a pass still compares the rewritten graph, and leaves running it to the whole suite. Mark a test
`slow` when it takes long before that point.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, settings

# the same examples in every run, and none refused because the machine is busy
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that is not `slow` as `quick`."""
    for item in items:
        if item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session", autouse=True)
def quick_lane_stops_at_sessions(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without `-m quick` nothing is patched."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("markexpr").startswith("quick"):
            patch.setattr(ort.InferenceSession, "__init__", _stop_at("an onnxruntime session"))
            patch.setattr(subprocess.Popen, "__init__", _stop_at("a subprocess"))
        yield


def _stop_at(what: str) -> object:
    def stop(*_: object, **__: object) -> None:
        pytest.skip(f"the quick lane ends at {what}")

    return stop
