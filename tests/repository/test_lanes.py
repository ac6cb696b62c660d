"""The quick lane never runs a model: see tests/conftest.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_the_quick_lane_ends_a_test_where_a_session_or_a_process_would_start() -> None:
    tests = (TESTS / "runtime" / "test_evaluate.py", Path(__file__))
    command = [sys.executable, "-m", "pytest", "-m", "quick", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *map(str, tests)], capture_output=True, text=True, check=True)
    assert "the quick lane ends at an onnxruntime session" in done.stdout
    assert "the quick lane ends at a subprocess" in done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]
