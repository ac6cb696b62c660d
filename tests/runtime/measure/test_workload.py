from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from onnxslim.analysis.input_demands import InputDemands
from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.runtime.measure import workload
from onnxslim.runtime.measure.workload import batch_size, from_samples, from_seed
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.session import Session, open_session
from support import parse

ROWWISE = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y) { y = Softmax (x) }"""
MIXING = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y) { y = Softmax <axis = 0> (x) }"""
SUMMED = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[1, 4] y) <int64[1] a = {0}> { y = ReduceSum (x, a) }"""
FROZEN = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[2, 2] y) <int64[2] s = {2, 2}> { y = Reshape (x, s) }"""


@pytest.fixture
def session() -> Iterator[Session]:
    with opened(ROWWISE) as session:
        yield session


def opened(text: str) -> Session:
    return open_session(Model.load(parse(text)))


def data(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)


def test_batches_are_used_where_they_give_the_same(session: Session) -> None:
    assert batch_size(session, open_samples({"x": data(5)}, session.inputs)) == workload.BATCH


@pytest.mark.parametrize("text", [MIXING, SUMMED, FROZEN])
def test_models_that_mix_samples_run_one_by_one(text: str) -> None:
    with opened(text) as session:
        samples = open_samples({"x": data(5)}, session.inputs)
        assert batch_size(session, samples) == 1
        assert len(from_samples(session, samples, "calibration").probes) == 5


def test_large_samples_go_in_smaller_batches(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "BATCH_BYTES", 16 * 6)
    assert batch_size(session, open_samples({"x": data(50)}, session.inputs)) == 6


def test_all_samples_are_probes_when_there_are_few(session: Session) -> None:
    found = from_samples(session, open_samples({"x": data(20)}, session.inputs), "calibration")
    assert found.description == "calibration: 20 samples"
    assert not found.has_wide
    assert [sample.rows for sample in found.probes] == [16, 4]
    assert found.single["x"].shape == (1, 4)


def test_at_most_256_of_many_samples_are_used(session: Session) -> None:
    found = from_samples(session, open_samples({"x": data(500)}, session.inputs), "calibration")
    assert found.description == "calibration: 256 of 500 samples"
    assert sum(sample.rows for sample in found.probes) == 256


def test_slow_models_probe_fewer_samples_and_say_so(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "PROBE_SECONDS", 0.0)
    found = from_samples(session, open_samples({"x": data(500)}, session.inputs), "calibration")
    assert found.description == "calibration: 256 of 500 samples (4 of them for lossless steps)"
    assert sum(sample.rows for sample in found.probes) == 4
    assert sum(sample.rows for sample in found.wide()) == 256
    assert sum(sample.rows for sample in found.wide()) == 256


def test_batches_in_a_list_are_counted_by_their_rows(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "PROBE_SECONDS", 0.0)
    samples = open_samples([{"x": data(4)}] * 5, session.inputs)
    found = from_samples(session, samples, "calibration")
    assert sum(sample.rows for sample in found.probes) == 4
    assert sum(sample.rows for sample in found.wide()) == 20
    assert found.description == "calibration: up to 256 samples (4 of them for lossless steps)"


def test_large_outputs_mean_fewer_samples(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "OUTPUT_BYTES", 16 * 10)
    found = from_samples(session, open_samples({"x": data(500)}, session.inputs), "calibration")
    assert found.description == "calibration: 10 of 500 samples"


def test_streams_of_unknown_length_are_not_counted_through(session: Session) -> None:
    endless = type("Endless", (), {"__iter__": lambda self: ({"x": data(1)} for _ in range(10**9))})
    found = from_samples(session, open_samples(endless(), session.inputs), "calibration")
    assert found.description == "calibration: 256 samples"


def test_data_on_which_the_model_fails_are_the_users_to_mend() -> None:
    text = ROWWISE.replace("float[N, 4] x", "float[N, M] x").replace(
        "y = Softmax (x)", "k = Constant <value = float[4] {1, 2, 3, 4}> () y = Add (x, k)"
    )
    with opened(text) as session:
        samples = open_samples({"x": data(3)[:, :3]}, session.inputs)
        with pytest.raises(UsageError, match="does not run on the calibration data"):
            from_samples(session, samples, "calibration")


def test_seeded_workload_says_that_it_is_made_up(session: Session) -> None:
    found, why = from_seed(session, 0, None, InputDemands())
    assert found is not None
    assert why == ""
    assert found.description.endswith("no calibration data given")
    assert found.wide() == found.probes
