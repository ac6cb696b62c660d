"""What steps came to is found again when all that bears on it is the same, and only then."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from layer_nets import dense_net

import onnxslim
from onnxslim.io.model import Model
from onnxslim.pipeline import manager as manager_module
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Policy
from onnxslim.pipeline.step_cache import Conditions, StepCache, context_facts, sources_sha256
from onnxslim.records import Change, Fidelity, OutputKind, Skip
from onnxslim.report import (
    Comparison,
    Drift,
    Latency,
    LatencyPair,
    PartReport,
    Report,
    StepReport,
)
from onnxslim.run.conditions import conditions
from onnxslim.run.settings import RunSettings

FIRST = "simplify,prune-channels:ratio=0.2"
LOSSY = f"{FIRST},quantize-weights"


def net() -> onnx.ModelProto:
    """A classifier with a node that simplify removes; its first weight is a file of its own."""
    model = dense_net(200, 128, 10)
    first = model.graph.node[0]
    model.graph.node.insert(0, onnx.helper.make_node("Identity", [first.input[0]], ["in0"]))
    first.input[0] = "in0"
    return model


def samples(rows: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    model = dense_net(200, 128, 10)
    rng = np.random.default_rng(seed)
    return {model.graph.input[0].name: rng.standard_normal((rows, 200)).astype(np.float32)}


def compressed(cache: Path | None, passes: str = LOSSY, **settings: object) -> tuple[bytes, Report]:
    wanted = {"calibration": samples(), "floors": None, "measure": False, "force": True}
    model, report = onnxslim.compress(net(), passes=passes, cache=cache, **(wanted | settings))  # type: ignore[arg-type]
    return model.to_bytes(), report


def found(report: Report) -> list[bool]:
    return [step.from_cache for step in report.steps]


def test_a_second_run_is_the_same_to_the_byte_and_runs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = compressed(None)
    first, report = compressed(tmp_path)
    assert first == plain
    assert found(report) == [False, False, False]

    def refuse(*_: object) -> None:
        raise AssertionError("a step was run")

    monkeypatch.setattr(manager_module._PipelineRun, "run_bundle", refuse)
    again, repeated = compressed(tmp_path)
    assert again == first
    assert found(repeated) == [True, True, True]
    for before, after in zip(report.steps, repeated.steps, strict=True):
        assert replace(after, from_cache=False) == before  # seconds, drift and changes included
    assert repeated.verified_on == report.verified_on
    assert repeated.notes == report.notes


def test_pipelines_that_begin_alike_share_steps(tmp_path: Path) -> None:
    compressed(tmp_path, FIRST)
    content, report = compressed(tmp_path, LOSSY)
    assert found(report) == [True, True, False]
    assert content == compressed(None, LOSSY)[0]
    other = compressed(tmp_path, "simplify,prune-channels:ratio=0.3")[1]
    assert found(other) == [True, False]


def test_steps_that_were_left_out_are_known_as_well(tmp_path: Path) -> None:
    settings = {"force": False, "floors": {"min-sqnr": 200.0}}
    for _ in range(2):
        with pytest.raises(onnxslim.FloorMissed) as failure:
            compressed(tmp_path, LOSSY, **settings)
        report = failure.value.report
        assert report is not None
    assert found(report) == [True, True, True]
    assert [step.committed for step in report.steps] == [True, False, False]


OTHERS: Mapping[str, Mapping[str, object]] = {
    "seed": {"seed": 1},
    "samples": {"calibration": samples(seed=1)},
    "labels": {"evaluation": {**samples(), "label": np.zeros(40, np.int64)}},
    "floors": {"floors": {"min-sqnr": 1.0}},
    "goal": {"goal": "bytes"},
    "force": {"force": False},
    "threads": {"threads": 1},
    "verify": {"verify": False},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_bears_on_a_step_is_part_of_its_key(tmp_path: Path, name: str) -> None:
    compressed(tmp_path, "quantize-fixed-point")
    assert found(compressed(tmp_path, "quantize-fixed-point", **OTHERS[name])[1]) == [False]


def test_all_fields_of_settings_context_and_policy_are_plain_data() -> None:
    """A new field counts without being listed; one that cannot count makes this test fail."""
    context = Context(output_kinds={"y": OutputKind.CLASSES})
    facts = {"context": context_facts(context), "policy": Policy()}
    cache = StepCache(Path("nowhere"), conditions(RunSettings(input_shapes={"x": (1, 2)})))
    assert cache.key({}, parse_pipeline("simplify").passes, facts) is not None
    assert {"seed", "floors", "goal", "output_kinds", "tokenizer"} <= context_facts(context).keys()


def _key(model: Model, passes: str, **always: object) -> str | None:
    cache = StepCache(Path("nowhere"), Conditions(always))
    return cache.key({"before": model}, parse_pipeline(passes).passes, {})


def test_versions_and_machine_are_part_of_the_key() -> None:
    model = Model.load(net())
    assert _key(model, "simplify", a=1) == _key(model.clone(), "simplify", a=1)
    assert _key(model, "simplify", a=1) != _key(model, "simplify", a=2)
    assert _key(model, "simplify") != _key(Model.load(dense_net(200, 100, 10)), "simplify")
    timed = conditions(RunSettings(measure=True)).always["machine"]
    assert "processor" in timed  # type: ignore[operator]
    assert "processor" not in conditions(RunSettings(measure=False)).always["machine"]  # type: ignore[operator]


def test_a_file_that_an_option_names_counts_by_its_content(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.onnx"
    keys = []
    for proto in (net(), dense_net(200, 100, 10)):
        onnx.save(proto, teacher)
        keys.append(_key(Model.load(net()), f"finetune:teacher='{teacher}'"))
    assert keys[0] != keys[1]


def test_sources_count_wherever_they_lie() -> None:
    ours = {sources_sha256(name) for name in ("onnxslim", "onnxslim.runtime", "onnxslim.passes")}
    assert len(ours) == 3
    assert None not in ours
    assert sources_sha256("msgspec") is not None
    assert sources_sha256("no_such_module") is None


def _metric(run: Callable[..., object]) -> float:
    return 0.5


def _keyed(run: Callable[..., object]) -> float:
    return 0.5


_keyed.cache_key = "1"  # type: ignore[attr-defined]


def test_a_metric_that_may_change_is_not_believed(tmp_path: Path) -> None:
    for _ in range(2):
        _, report = compressed(tmp_path, "simplify", evaluation=_metric)
    assert found(report) == [False]
    assert any("Steps are not kept: what `eval` measures" in note for note in report.notes)
    for _ in range(2):
        _, report = compressed(tmp_path, "simplify", evaluation=_keyed)
    assert found(report) == [True]


def test_samples_of_a_function_count_by_what_it_returns(tmp_path: Path) -> None:
    assert found(compressed(tmp_path, calibration=lambda: samples())[1]) == [False] * 3
    assert found(compressed(tmp_path, calibration=lambda: samples())[1]) == [True] * 3
    assert found(compressed(tmp_path, calibration=lambda: samples(seed=1))[1]) == [False] * 3


def test_weights_that_were_altered_or_lost_are_computed_again(tmp_path: Path) -> None:
    plain, _ = compressed(tmp_path)
    weights = list((tmp_path / "weights").iterdir())
    assert weights
    for path in weights:
        content = bytearray(path.read_bytes())
        content[7] ^= 1
        path.write_bytes(content)
    again, report = compressed(tmp_path)
    assert again == plain
    assert not all(found(report))
    assert found(compressed(tmp_path)[1]) == [True] * 3  # and kept once more
    for path in (tmp_path / "weights").iterdir():
        path.unlink()
    assert compressed(tmp_path)[0] == plain


def test_a_folder_that_cannot_be_written_is_a_note_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("a file")
    plain, report = compressed(tmp_path)
    assert plain == compressed(None)[0]
    assert sum("Steps are not kept in" in note for note in report.notes) == 1


def test_latency_of_two_models_is_kept(tmp_path: Path) -> None:
    before, after = Model.load(net()), Model.load(dense_net(200, 100, 10))
    cache = StepCache(tmp_path, Conditions({}))
    assert cache.pair(before, after) is None
    times = Latency(1.0, 0.5, 2.0, 10)
    pair = LatencyPair(times, times, 1.0, 0.9, 1.1)
    cache.keep_pair(before, after, pair)
    other = StepCache(tmp_path, Conditions({}))
    assert other.pair(before.clone(), after) == pair
    assert other.pair(after, before) is None


def test_a_report_of_a_step_survives_as_bytes() -> None:
    drift = Drift(1.0, math.inf, math.nan, 1.0, None, 2.0, False, kind=OutputKind.CLASSES)
    part = PartReport("a", Fidelity.CLOSE, 0.1, (Change("n", "w", "s"),), (Skip("m", "why"),))
    step = StepReport(
        "a", Fidelity.LOSSY, True, 0.5, [part], comparison=Comparison({"y": drift}, {})
    )
    back = msgspec.msgpack.decode(msgspec.msgpack.encode(step), type=StepReport)
    assert repr(back) == repr(step)  # NaN is not equal to itself
    assert back.parts[0].changes[0].site == "s"
    assert {item.name for item in fields(StepReport)} >= {"from_cache", "seconds"}


def test_a_model_with_other_inputs_is_not_kept() -> None:
    model = Model.load(net())
    assert _key(model, "simplify") is not None
    model.graph.inputs[0].renumber(np.arange(200), None)
    assert _key(model, "simplify") is None
