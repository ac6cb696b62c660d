"""Whether one run may take several samples."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.io.model import Model
from onnxslim.runtime.measure.run_rows import as_they_run
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.session import open_session
from onnxslim.runtime.training.training_set import TrainingSet
from onnxslim.services.progress import Progress
from support import parse

HEADER = '<opset_import: ["" : 17]>'
SMALL = "float[3, 2] w = {1, 2, 3, 4, 5, 6}"
CONSTANT = "<float[2] k = {1, 2}>"
MODELS = {
    "rows": ("", "y = Relu (x)", "N, 4", True),
    "a constant beside": (
        "",
        "y = Relu (x) c = Constant <value = float[2] {1, 2}> ()",
        "N, 4",
        True,
    ),
    "constants alone": ("", "y = Constant <value = float[1, 4] {1, 2, 3, 4}> ()", "N, 4", False),
    "pinned by a weight": (f"<{SMALL}>", "t = Transpose (x) y = MatMul (t, w)", "4, 2", False),
    "mixed": (
        "<float[1] m = {1}>",
        "q, s, z = DynamicQuantizeLinear (x) y = Mul (s, m)",
        "1",
        False,
    ),
}


def model_of(name: str) -> Model:
    weights, body, shape, _ = MODELS[name]
    more = ", float[2] c" if "c = " in body else ""
    return Model.load(
        parse(f"{HEADER} g (float[N, 4] x) => (float[{shape}] y{more}) {weights} {{ {body} }}")
    )


def samples_of(rows: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((rows, 4)).astype(np.float32)} for _ in range(6)]


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_joined_where_the_outputs_are_those_of_single_runs(name: str) -> None:
    rows = 3 if name == "pinned by a weight" else 2
    with open_session(model_of(name)) as session:
        samples = as_they_run(session, open_samples(samples_of(rows), session.inputs))
    assert samples.batchable is MODELS[name][-1]
    sizes = [sample.rows for sample in samples.batches(2 * rows)]
    assert sizes == ([2 * rows] * 3 if samples.batchable else [rows] * 6)


def test_samples_without_a_neighbour_of_their_size_run_one_by_one() -> None:
    text = f"{HEADER} g (float[N, M] x) => (float[N, M] y) {{ y = Relu (x) }}"
    data = [{"x": np.zeros((1, size), np.float32)} for size in (3, 4, 3, 4)]
    with open_session(Model.load(parse(text))) as session:
        assert not as_they_run(session, open_samples(data, session.inputs)).batchable
        data.append(data[-1])
        assert as_they_run(session, open_samples(data, session.inputs)).batchable


def test_calibration_and_training_run_pinned_samples_one_by_one() -> None:
    model = model_of("pinned by a weight")
    (moments,) = CalibrationRuns(samples_of(3)).moments(model)
    assert moments.count == 6 * 4  # type: ignore[union-attr]
    with open_session(model) as session:
        samples = open_samples(samples_of(3), session.inputs)
    data = TrainingSet(samples, [model], kinds={}, threads=1, progress=Progress())
    try:
        assert {len(group) for group in data.held_groups(16)} == {1}
        assert all(data.batch(group).feeds["x"].shape == (3, 4) for group in data.held_groups(16))
    finally:
        data.close()
