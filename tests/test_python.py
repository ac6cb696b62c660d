"""The functions of `onnxslim`: their page is true, and wrong arguments are sentences."""

from __future__ import annotations

import doctest
import shutil
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_nets import dense_net, samples

import onnxslim
from onnxslim import UsageError
from onnxslim.errors import FloorMissed
from onnxslim.passes.eliminate_identity import EliminateIdentity
from onnxslim.pipeline.floors import Floors
from onnxslim.run.requests import floors_to_hold, parsed

ASSETS = Path(onnxslim.__file__).resolve().parent / "assets"


@pytest.mark.slow
def test_examples_of_the_page_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lenet5.onnx", "mnist_calib.npz", "mnist_eval.npz"):
        shutil.copy(ASSETS / name, tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testmod(onnxslim, optionflags=flags)
    assert found.attempted > 10
    assert found.failed == 0


def quick(**arguments: Any) -> tuple[onnxslim.Model, onnxslim.Report]:
    arguments = {"passes": "eliminate-identity", "measure": False, **arguments}
    return onnxslim.compress(dense_net(6, 4), **arguments)


def test_passes_can_be_given_in_all_forms() -> None:
    text = "eliminate-identity,simplify"
    for passes in (
        text,
        onnxslim.parse_pipeline(text),
        [EliminateIdentity(), "simplify"],
        (item for item in text.split(",")),
    ):
        assert str(parsed(passes)) == text
    assert str(parsed(EliminateIdentity())) == "eliminate-identity"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"passes": [EliminateIdentity]}, "the class `EliminateIdentity`.*Make one"),
        ({"passes": []}, "`passes` is empty"),
        ({"passes": 3}, "`passes` holds 3 of type int, which is no pass"),
        ({"goal": "speed"}, "The goal must be one of both, latency, bytes; got 'speed'"),
        ({"seed": -1}, "`seed` must be an integer in"),
        ({"threads": 0}, "`threads` must be an integer at least 1; got 0"),
        ({"floors": {"max-dropp": 1}}, "no key `max-dropp`. Did you mean `max-drop`"),
        ({"floors": {"min_agreement": 2}}, "`min-agreement` must be a number"),
        ({"floors": 3}, "`floors` must be limits by name; got 3"),
        ({"data": {"imagesize": 3}}, "no setting of data"),
        ({"data": 3}, "`data` must be settings by name"),
        ({"calibration": {"x": samples(8, 6)}, "calib": {"x": samples(8, 6)}}, "mean the same"),
        ({"calibration": 3}, "3 of type int|int"),
        ({"output_kinds": {"y": "class"}}, "one of classes, embedding, hidden-states, "),
    ],
)
def test_wrong_arguments_are_sentences(arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quick(**arguments)


def test_floors_by_name_are_floors() -> None:
    assert floors_to_hold({"max-drop": 0.5, "min_sqnr": 30}) == Floors(max_drop=0.5, min_sqnr_db=30)
    assert floors_to_hold(None) == Floors()


def test_words_of_the_command_are_words_of_python() -> None:
    data = {"x": samples(8, 6)}
    assert quick(calib=data)[1].data == quick(calibration=data)[1].data


def test_missed_floor_carries_the_best_model_and_the_report(tmp_path: Path) -> None:
    with pytest.raises(FloorMissed) as caught:
        onnxslim.compress(
            dense_net(16, 16),
            tmp_path / "out.onnx",
            passes="simplify,binarize-weights",
            calibration={"x": samples(8, 16)},
            floors={"min-sqnr": 60},
            goal="bytes",
            measure=False,
        )
    assert caught.value.report is not None
    assert "left out: binarize-weights: " in str(caught.value.report)
    assert caught.value.model is not None
    assert caught.value.model.to_bytes()
    assert "kept: simplify" in str(caught.value.report)


def test_model_and_report_are_shown_in_a_few_lines() -> None:
    model, report = quick()
    assert repr(model).startswith("<onnxslim.Model made in memory, ")
    assert "(x: float32[" in repr(model)
    assert 2 <= len(str(report).splitlines()) <= 4


def test_data_are_read_as_they_are_asked_for() -> None:
    """No more than what is compared is drawn from a source that could be long."""
    drawn = 0

    def stream() -> Iterator[dict[str, np.ndarray]]:
        nonlocal drawn
        for row in samples(8, 6):
            drawn += 1
            yield {"x": row}

    _, report = quick(calibration=stream)
    assert 0 < drawn <= 8
    assert report.data[0].startswith("calibration: samples of `stream`; `x` float32 [1, 6]")


def test_functions_that_look_are_there() -> None:
    model = onnxslim.Model.load(dense_net(6, 4))
    assert onnxslim.groups(model).totals["layers"] > 0
    assert "simplify" in {item.name for item in onnxslim.passes()}
    assert callable(onnxslim.exits)
    points = onnxslim.sensitivity(model, calib={"x": samples(8, 6)}, passes="cluster-weights")
    assert next(points).target


def test_closed_sets_are_closed_for_type_checkers() -> None:
    for function, argument in (
        (onnxslim.compress, "goal"),
        (onnxslim.pack, "coder"),
    ):
        module = __import__(function.__module__, fromlist=["x"])
        hint = typing.get_type_hints(
            function, {**vars(module), **_type_only()}, include_extras=True
        )[argument]
        assert typing.get_origin(hint) is typing.Literal


def _type_only() -> dict[str, object]:
    """Names that `onnxslim.api` imports for type checkers only."""
    from onnxslim.pipeline.data_settings import DataSettings, DataWords
    from onnxslim.runtime.measure.accuracy import EvaluationSource
    from onnxslim.runtime.samples.given import SampleSource
    from onnxslim.tools.pack import PackReport

    return {
        "DataSettings": DataSettings,
        "DataWords": DataWords,
        "EvaluationSource": EvaluationSource,
        "SampleSource": SampleSource,
        "PackReport": PackReport,
    }
