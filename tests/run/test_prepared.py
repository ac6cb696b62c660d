"""Several pipelines on one prepared model: each starts from the source, and nothing is redone."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxslim
from onnxslim.io.model import Model
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.policy import Policy
from onnxslim.run.output import write_output
from onnxslim.run.prepared import PreparedRun
from onnxslim.run.settings import RunSettings
from support import parse

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 64] x) => (float[N, 32] y)
<float[64, 32] w = {WEIGHTS}> {
    i = Identity (x)
    h = MatMul (i, w)
    y = Relu (h)
}""".replace("WEIGHTS", ", ".join(f"{(7 * i) % 101 / 101 - 0.5:.3f}" for i in range(64 * 32)))

LOSSY = "quantize-weights:bits=4"


@pytest.fixture
def source() -> Model:
    return Model.load(parse(TEXT))


def test_two_pipelines_give_what_two_calls_of_compress_give(source: Model) -> None:
    run = PreparedRun(source, RunSettings(measure=False))
    for passes in (LOSSY, "simplify"):
        attempt = run.try_pipeline(parse_pipeline(passes))
        alone, report = onnxslim.compress(parse(TEXT), passes=passes, measure=False)
        assert attempt.model.to_bytes() == alone.to_bytes()
        assert [step.committed for step in attempt.steps] == [True]
        assert attempt.steps[0].comparison == report.steps[0].comparison


def test_a_step_is_compared_with_the_source_not_with_the_attempt_before(source: Model) -> None:
    run = PreparedRun(source, RunSettings(measure=False))
    moved = run.try_pipeline(parse_pipeline(LOSSY)).steps[0].comparison
    again = run.try_pipeline(parse_pipeline(LOSSY)).steps[0].comparison
    equal = run.try_pipeline(parse_pipeline("eliminate-identity")).steps[0].comparison
    assert moved is not None
    assert again == moved
    assert not moved.previous["y"].equal_bits
    assert equal is not None
    assert equal.previous["y"].equal_bits


def test_the_model_is_checked_and_measured_once(
    source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = PreparedRun(source, RunSettings(measure=False))
    monkeypatch.setattr(RunSettings, "admit", None)
    monkeypatch.setattr("onnxslim.run.prepared.measure_stats", None)
    monkeypatch.setattr(RunSettings, "prover", None)
    monkeypatch.setattr(RunSettings, "context", None)
    assert run.try_pipeline(parse_pipeline(LOSSY)).model is not source
    assert run.try_pipeline(parse_pipeline("eliminate-dead")).model is source


def test_each_attempt_has_a_policy_of_its_own(source: Model) -> None:
    run = PreparedRun(source, RunSettings(measure=False))
    strict = run.try_pipeline(parse_pipeline(LOSSY), Policy(floors=Floors(min_sqnr_db=90)))
    assert strict.model is source
    assert strict.steps[0].floor_missed
    assert run.try_pipeline(parse_pipeline(LOSSY)).model is not source


def test_any_attempt_can_be_reported_and_written(source: Model, tmp_path: Path) -> None:
    run = PreparedRun(source, RunSettings(measure=False))
    attempts = [run.try_pipeline(parse_pipeline(passes)) for passes in ("simplify", LOSSY)]
    for number, attempt in enumerate(attempts):
        report = run.report(attempt, "a search")
        write_output(run, attempt, report, tmp_path / f"{number}.onnx")
        assert report.before.stats == run.before.stats
        assert report.after.stats.file_bytes == (tmp_path / f"{number}.onnx").stat().st_size
    assert Model.load(tmp_path / "1.onnx").graph.nodes[-1].op == "Relu"


def test_without_verification_and_timing_there_is_no_prover(source: Model) -> None:
    run = PreparedRun(source, RunSettings(verify=False, measure=False))
    assert run.prover is None
    assert run.try_pipeline(parse_pipeline("simplify")).model is not source
