"""`onnxslim check`: a report is believed only where its files still do what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from command import Said, run
from layer_nets import dense_net

from onnxslim.io.model import Model
from onnxslim.pipeline.floors import Floors, JudgedBy
from onnxslim.records import Fidelity, OutputKind
from onnxslim.report import Comparison, Drift, Latency, LatencyPair
from onnxslim.tools.claims import Claim, ClaimSettings, judged_claims


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, samples, labels, the output of a run and its report."""
    folder = tmp_path_factory.mktemp("made")
    onnx.save(dense_net(200, 128, 10), folder / "m.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 200)).astype(np.float32)
    np.savez(folder / "c.npz", x=x)
    np.savez(folder / "other.npz", x=x + 1)
    settings = ("--passes", "quantize-weights", "--min-sqnr", "20", "--force", "--no-latency")
    words = (folder / "m.onnx", folder / "o.onnx", "--calib", folder / "c.npz", *settings)
    assert run(*words, "--report", folder / "r.json", "--quiet") == 0
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "work"))


def check(work: Path, *more: object, calib: str = "c.npz") -> int:
    words = ("--against", work / "m.onnx", "--report", work / "r.json", "--calib", work / calib)
    return run("check", work / "o.onnx", *words, "--no-latency", *more)


def broken(said: Said) -> str:
    return " ".join(said.readouterr().err.split())


def test_what_was_reported_holds(work: Path, capsys: Said) -> None:
    assert check(work, "--json") == 0
    claims = json.loads(capsys.readouterr().out)
    assert {claim["claim"] for claim in claims} >= {"output file: sha256", "output `y`", "floors"}
    assert all(claim["holds"] for claim in claims)


def test_one_altered_weight_is_found(work: Path, capsys: Said) -> None:
    path = work / "o.onnx"
    content = bytearray(path.read_bytes())
    codes = max(onnx.load(path).graph.initializer, key=lambda item: len(item.raw_data)).raw_data
    content[content.index(codes) + 5] ^= 1
    path.write_bytes(content)
    onnx.checker.check_model(onnx.load(path))
    assert check(work, "--junit", work / "j.xml") == 4
    assert "output file: sha256: claimed" in broken(capsys)
    cases = ElementTree.parse(work / "j.xml").findall(".//testcase[failure]")
    assert [case.get("name") for case in cases] == ["output file: sha256"]


def test_another_input_is_found(work: Path, capsys: Said) -> None:
    onnx.save(dense_net(200, 128, 10, seed=9), work / "m.onnx")
    assert check(work) == 4
    assert "input file: sha256" in broken(capsys)


def edit(work: Path, change: Callable[[dict[str, Any]], object]) -> None:
    report = json.loads((work / "r.json").read_text())
    change(report)
    (work / "r.json").write_text(json.dumps(report))


def test_outputs_that_are_farther_than_reported_are_found(work: Path, capsys: Said) -> None:
    edit(work, lambda r: r["passes"][0]["drift_original"]["y"].update(sqnr_db=90.0))
    assert check(work) == 4
    assert "output `y`: claimed 90.0 dB" in broken(capsys)


def test_a_run_without_a_floor_claims_nothing_of_its_loss(work: Path, capsys: Said) -> None:
    edit(work, lambda r: r["record"].update(settings={"floor": "none"}))
    assert check(work) == 4
    assert "floors: claimed none, found none was held" in broken(capsys)
    assert check(work, "--no-floor") == 0
    assert check(work, "--min-sqnr", "20") == 0
    assert check(work, "--min-sqnr", "99") == 4
    assert "--min-sqnr is 99" in broken(capsys)


def test_other_data_hold_the_floors_and_judge_no_figure(work: Path, capsys: Said) -> None:
    assert check(work, "--json", calib="other.npz") == 0
    claims = {item["claim"]: item for item in json.loads(capsys.readouterr().out)}
    assert claims["output `y`"]["holds"] is None
    assert "other data than the run had" in claims["output `y`"]["found"]
    assert claims["floors"]["holds"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{}", "is no report of a run"), ("no json", "is not JSON"), (None, "There is no file")],
)
def test_what_is_no_report_is_refused(
    work: Path, capsys: Said, content: str | None, sentence: str
) -> None:
    (work / "r.json").unlink()
    if content is not None:
        (work / "r.json").write_text(content)
    assert check(work) == 2
    assert sentence in broken(capsys)


def test_a_report_of_a_run_that_wrote_nothing_is_refused(work: Path, capsys: Said) -> None:
    edit(work, lambda r: r["output"].update(sha256=None))
    assert check(work) == 2
    assert "of no run that wrote a file" in broken(capsys)


class Measured:
    """Figures that were not measured, for claims about time and accuracy."""

    def __init__(self, pair: LatencyPair | None, accuracies: Sequence[float | None]) -> None:
        self.pair, self.accuracies = pair, list(accuracies)
        self.judged_by = JudgedBy(samples=True, labels=True)
        self.verified_on = "nothing"

    def begin(self, original: Model) -> bool:
        return True

    def compare(self, candidate: Model, fidelity: Fidelity) -> Comparison:
        drift = Drift(0.1, 0.1, 20.0, 0.99, 0.95, 1.0, False, kind=OutputKind.CLASSES)
        return Comparison({}, {"y": drift})

    def time(self, before: Model, after: Model) -> LatencyPair | None:
        return self.pair

    def accuracy(self, model: Model) -> float | None:
        return self.accuracies.pop(0)


def pair(low: float, ratio: float, high: float) -> LatencyPair:
    return LatencyPair(Latency(2.0, 1.0, 3.0, 9), Latency(1.0, 1.0, 1.0, 9), ratio, low, high)


def claimed(
    made: Path, measured: Measured, settings: ClaimSettings | None = None
) -> dict[str, Claim]:
    report = json.loads((made / "r.json").read_text())
    report["latency"] = {"ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1}
    report["after"]["accuracy"] = 0.9
    report["record"]["processor"] = "this one"
    report["record"]["settings"] = {"max-drop": "1.0"}
    same = ClaimSettings(report["record"]["data_sha256"], "this one")
    source, output = Model.load(made / "m.onnx"), Model.load(made / "o.onnx")
    found = judged_claims(report, source, output, measured, settings or same)
    return {claim.name: claim for claim in found}


@pytest.mark.parametrize(
    ("found", "processor", "is_held"),
    [
        (pair(1.85, 2.0, 2.2), "this one", True),
        (pair(1.3, 1.4, 1.5), "this one", False),  # slower than reported
        (pair(1.3, 1.4, 1.5), "another", True),  # there the ratio is another; not slower holds
        (pair(0.7, 0.8, 0.9), "another", False),
        (None, "this one", None),
    ],
)
def test_a_slower_result_is_found(
    made: Path, found: LatencyPair | None, processor: str, is_held: bool | None
) -> None:
    settings = ClaimSettings({}, processor)
    assert claimed(made, Measured(found, [0.9, 0.9]), settings)["latency"].is_held is is_held


@pytest.mark.parametrize(
    ("accuracies", "is_held", "floors_held"),
    [([0.905, 0.9], True, True), ([0.905, 0.88], False, False), ([None, None], None, None)],
)
def test_a_loss_of_accuracy_is_found(
    made: Path, accuracies: list[float | None], is_held: bool | None, floors_held: bool | None
) -> None:
    found = claimed(made, Measured(None, accuracies))
    assert (found["accuracy"].is_held, found["floors"].is_held) == (is_held, floors_held)


def test_floors_of_the_user_count_beside_those_of_the_run(made: Path) -> None:
    report = json.loads((made / "r.json").read_text())
    settings = ClaimSettings(report["record"]["data_sha256"], "", Floors(min_agreement=0.99))
    found = claimed(made, Measured(None, [0.9, 0.9]), settings)["floors"]
    assert found.is_held is False
    assert "--min-agreement is 0.99" in found.found
    lenient = replace(settings, floors=Floors(min_agreement=0.9))
    assert claimed(made, Measured(None, [0.9, 0.9]), lenient)["floors"].is_held
