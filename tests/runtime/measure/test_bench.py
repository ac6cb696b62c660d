from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from onnxslim.errors import RuntimeFailure
from onnxslim.io.model import Model
from onnxslim.runtime.measure import bench as bench_module
from onnxslim.runtime.measure import latency
from onnxslim.runtime.measure.bench import bench
from support import parse

MODEL = """<opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Abs (x) }"""


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MAX_ROUNDS", 8)


def test_every_model_after_the_first_is_paired_with_it(tmp_path: Path) -> None:
    path = tmp_path / "b.onnx"
    path.write_bytes(parse(MODEL.replace("Abs", "Neg")).SerializeToString())
    (first, second, third), _ = bench(
        [Model.load(parse(MODEL)), Model.load(path), Model.load(path)]
    )
    assert (first[0], second[0]) == ("model 1", str(path))
    assert first[2] is None
    assert third[2] is not None
    assert third[2].before.median == first[1].median
    assert first[1].runs == 8 * latency.SESSION_SETS


def test_models_run_as_long_as_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def timed(
        opened: Callable[[], AbstractContextManager[object]], *, seed: int, budget_s: float
    ) -> latency.RunTimes:
        given.append(budget_s)
        with opened():
            pass
        return latency.RunTimes(np.ones((1, 7)), np.ones((1, 7)))

    monkeypatch.setattr(bench_module, "time_sessions", timed)
    bench([Model.load(parse(MODEL))])
    bench([Model.load(parse(MODEL))], seconds=30)
    assert given == [latency.BUDGET_S, 30]


def test_calibration_gives_the_sample() -> None:
    text = MODEL.replace("float[N, 4] x", "float[N, M] x").replace(
        "y = Abs (x)", "k = Constant <value = float[4] {1, 2, 3, 4}> () y = Add (x, k)"
    )
    rows, _ = bench([Model.load(parse(text))], calibration={"x": np.ones((2, 4), np.float32)})
    assert rows[0][1].median > 0


def test_models_that_run_on_nothing_are_told() -> None:
    text = """<opset_import: ["" : 17]> g (float[N, 4] x) => (float[3, 3] y) <int64[2] s = {3, 3}> {
        y = Reshape (x, s) }"""
    with pytest.raises(RuntimeFailure, match=r"No inputs could be made up.*--input-shape"):
        bench([Model.load(parse(text))])
