"""`--report` as a page, `--trace`, `onnxslim report`: what a user writes and reads again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import Said, run
from report_pages import check_figures

from onnxslim import surveys
from onnxslim.exits.candidates import ExitRow
from onnxslim.pages.html import data_in
from support import parse

TEXT = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] logits)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {1, 2, 3}>
{
    a = Identity (x)
    h = Relu (a)
    m = MatMul (h, w)
    logits = Add (m, b)
}"""


def written(folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(parse(TEXT), path)
    rng = np.random.default_rng(0)
    np.savez(folder / "calib.npz", x=rng.normal(size=(24, 4)).astype(np.float32))
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return written(tmp_path)


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run was timed, and wrote a page and a trace."""
    folder = tmp_path_factory.mktemp("timed")
    model = written(folder)
    passes = ("-p", "simplify", "--calib", folder / "calib.npz")
    files = ("--report", folder / "run.html", "--trace", folder / "trace.json")
    assert run(model, folder / "o.onnx", *passes, *files, "-q") == 0
    return folder


def details_of(path: Path) -> Any:
    return json.loads(path.read_text())["details"]


def test_a_page_and_its_json_are_one(timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(timed)
    html = Path("run.html").read_text()
    shown = {figure.at for figure in check_figures(html)}
    assert {"/after/stats/file_bytes", "/details/layers/0/after/bytes", "/latency/ratio"} <= shown
    # the JSON alone gives the same page; the page gives the JSON
    assert run("report", "run.html", "-o", "run.json", "-q") == 0
    assert run("report", "run.json", "-o", "again.html", "-q") == 0
    assert Path("again.html").read_text() == html
    assert json.loads(Path("run.json").read_text()) == data_in(html)
    assert run("explain", "run.html") == 0
    assert run("report", "run.json", "-o", "run.md", "-q") == 0
    assert "## Steps" in Path("run.md").read_text()


def test_details_tell_of_layers_samples_energy_and_graphs(model: Path) -> None:
    passes = "simplify,quantize-weights:bits=4"
    arguments = (model, "o.onnx", "-p", passes, "--calib", "calib.npz", "--force", "--no-floor")
    assert run(*arguments, "--no-latency", "--report", "run.json", "-q") == 0
    found = details_of(Path("run.json"))
    (layer,) = found["layers"]
    before, after = layer["before"], layer["after"]
    assert (before["operator"], before["shape"], before["rank"]) == ("MatMul", [4, 3], 3)
    assert (before["bytes"], before["bits"], before["macs"]) == (48, 32.0, 12)
    assert after["bits"] < before["bits"] or "codes" not in after["stored"]
    assert [sample["number"] for sample in found["samples"]]
    assert found["samples_compared"] == 24
    energies = [found[side]["energy"]["total_pj"] for side in ("before", "after")]
    assert all(energy > 0 for energy in energies)
    operators = [box["operator"] for box in found["before"]["graph"]["boxes"]]
    assert operators == ["Identity", "Relu", "MatMul", "Add"]
    assert found["before"]["graph"]["boxes"][0]["state"] == "gone"


def test_layers_are_timed_where_models_are(timed: Path) -> None:
    (layer,) = data_in((timed / "run.html").read_text())["details"]["layers"]
    assert layer["before"]["ms"] > 0
    assert layer["after"]["ms"] > 0


def test_without_a_clock_nothing_is_timed(model: Path) -> None:
    assert run(model, "o.onnx", "--no-latency", "--report", "run.json", "-q") == 0
    assert {layer["before"]["ms"] for layer in details_of(Path("run.json"))["layers"]} == {None}
    assert run(model, "p.onnx", "--no-latency", "--no-verify", "--report", "p.html", "-q") == 0
    check_figures(Path("p.html").read_text())


def test_a_model_that_nothing_changed_has_a_page(model: Path) -> None:
    assert run(model, "o.onnx", "-p", "fuse-pad", "--report", "run.html", "-q") == 0
    data = data_in(Path("run.html").read_text())
    states = {box["state"] for box in data["details"]["after"]["graph"]["boxes"]}
    assert states == {"same"}


def test_a_trace_has_a_process_for_each_model(timed: Path) -> None:
    events = json.loads((timed / "trace.json").read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {1: f"before: {timed / 'model.onnx'}", 2: f"after: {timed / 'o.onnx'}"}
    for process in names:
        spans = [e for e in events if e["ph"] == "X" and e["pid"] == process]
        (whole,) = (e for e in spans if e["name"] == "run")
        kernels = [e for e in spans if e["cat"] == "kernel"]
        assert kernels
        assert whole["ts"] == 0
        assert all(0 <= e["ts"] <= whole["dur"] for e in kernels)
        assert all(e["args"]["node"] for e in kernels)


def test_bench_traces_all_models(model: Path) -> None:
    assert run("bench", model, model, model, "--seconds", "0.05", "--trace", "t.json") == 0
    events = json.loads(Path("t.json").read_text())["traceEvents"]
    assert {e["pid"] for e in events} == {1, 2, 3}


def some_exits(*_: object, **__: object) -> tuple[list[ExitRow], list[str]]:
    return [ExitRow("h", (None, 4), None, 0.2, "linear", 0.99, 0.5)], ["a note"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "model.onnx", "model.onnx", "--seconds", "0.05"),
        ("compare", "model.onnx", "model.onnx"),
        ("exits", "model.onnx"),
        ("sensitivity", "model.onnx", "--calib", "calib.npz", "--passes", "prune-weights"),
    ],
)
def test_other_commands_write_pages(
    arguments: tuple[str, ...], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "exits", some_exits)
    assert run(*arguments, "--report", "r.html") == 0
    html = Path("r.html").read_text()
    assert check_figures(html)
    assert data_in(html)["kind"] == arguments[0]
    assert run("report", "r.html", "-o", "r.json", "-q") == 0
    assert run("report", "r.json", "-o", "again.html", "-q") == 0
    assert Path("again.html").read_text() == html


def test_several_models_and_runs_stand_side_by_side(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(parse(TEXT.replace("Relu", "Sigmoid")), other)
    quick = ("--no-latency", "-q", "--report", "all.html")
    assert run(model, other, "--out-dir", "out", *quick) == 0
    data = data_in(Path("all.html").read_text())
    assert [item["input"]["path"] for item in data["models"]] == [str(model), str(other)]
    assert all(item["details"]["layers"] for item in data["models"])
    assert run(model, "o.onnx", "--no-latency", "-q", "--report", "one.json") == 0
    assert run("report", "one.json", "all.html", "-o", "three.html", "-q") == 0
    assert len(data_in(Path("three.html").read_text())["models"]) == 3
    check_figures(Path("three.html").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("report", "none.json", "-o", "r.html"), "There is no file `none.json`"),
        (("report", "model.onnx", "-o", "r.html"), "no report"),
        (("report", "calib.npz", "-o", "r.html"), "no report"),
        (("report", "list.json", "-o", "r.html"), "no report of onnxslim"),
        (("report", "list.json"), "--output"),
        (("report", "list.json", "-o", "model.onnx"), "did not write"),
        (("model.onnx", "o.onnx", "--trace", "model.onnx"), "give the trace a name of its own"),
        (("model.onnx", "o.onnx", "--trace", "calib.npz"), "did not write"),
        (
            ("model.onnx", "m.onnx", "--out-dir", "d", "--trace", "t.json"),
            "--trace is of one model",
        ),
    ],
)
def test_wrong_requests_are_told(
    arguments: tuple[str, ...], said: str, model: Path, capsys: Said
) -> None:
    Path("list.json").write_text("[1]")
    before = sorted(Path().iterdir())
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


def test_a_run_that_fails_leaves_a_page(model: Path) -> None:
    floor = ("-p", "prune-weights:ratio=0.9", "--calib", "calib.npz", "--min-sqnr", "90")
    code = run(model, "o.onnx", *floor, "--no-latency", "-q", "--report", "run.html")
    html = Path("run.html").read_text()
    check_figures(html)
    assert code == 4
    assert "Exit code 4" in html


def test_inspect_tells_the_energy(model: Path, capsys: Said) -> None:
    assert run("inspect", model) == 0
    assert "energy, by arithmetic" in capsys.readouterr().out
    assert run("inspect", model, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["energy"]["total_pj"] > 0
