from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest
from command import Said, run

import onnxslim
from onnxslim import api
from onnxslim.commands.files import write_atomically
from onnxslim.errors import (
    FloorMissed,
    ModelError,
    OnnxslimError,
    PromiseBroken,
    RuntimeFailure,
    UsageError,
)
from onnxslim.io.model import Model
from onnxslim.pipeline import registry
from onnxslim.records import Fidelity, OutputKind
from onnxslim.report import (
    Comparison,
    Drift,
    FileReport,
    Latency,
    LatencyPair,
    Report,
    Stats,
    StepReport,
)
from onnxslim.services.progress import Progress
from support import parse

STATS = Stats(3, 12, 48, 400, 24)
PAIR = LatencyPair(Latency(2.0, 1.9, 2.1, 9), Latency(1.0, 0.9, 1.1, 9), 2.0, 1.9, 2.1)
DRIFT = Drift(0.25, 0.1, 20.0, 0.99, 0.5, 3.0, False, kind=OutputKind.CLASSES)

TEXT = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
{
    a = Identity (x)
    b = MatMul (a, w)
    y = Relu (b)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(parse(TEXT), path)
    return path


@dataclass
class Calls:
    """What the command asked of the API."""

    given: list[dict[str, object]] = field(default_factory=list)
    error: BaseException | None = None

    def compress(self, model: object, output: object, **given: object) -> tuple[object, Report]:
        self.given.append({"model": model, "output": output, **given})
        if self.error is not None:
            raise self.error
        return object(), report()


def report() -> Report:
    step = StepReport("simplify", Fidelity.EXACT, True, 0.1, stats=STATS)
    return Report(
        "onnxslim",
        {},
        FileReport("model.onnx", "00", STATS),
        FileReport("out.onnx", "11", STATS),
        [step],
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    fake = Calls()
    monkeypatch.setattr(api, "compress", fake.compress)
    return fake


# ------------------------------------------------------------------- what is asked of the API


def test_model_alone_is_short_for_compress(model: Path, calls: Calls, capsys: Said) -> None:
    assert run(model) == 0
    assert run("compress", model) == 0
    assert calls.given[0] | {"command": "", "progress": None} == calls.given[1] | {
        "command": "",
        "progress": None,
    }
    assert calls.given[0]["output"] == model.with_name("model.slim.onnx")
    out, err = capsys.readouterr()
    assert out.startswith("step")
    assert out.rstrip().endswith("model.slim.onnx")
    assert err == ""


def test_options_may_stand_before_the_model(model: Path, calls: Calls) -> None:
    assert run("--seed", "3", model) == 0
    assert calls.given[0]["seed"] == 3


def test_options_reach_the_api(model: Path, calls: Calls, tmp_path: Path) -> None:
    code = run(
        model, tmp_path / "o.onnx", "--passes", "eliminate-identity", "--calib", "c.npz",
        "--eval", "m:f", "--max-drop", "0.5", "--min-agreement", "0.9", "--min-sqnr", "30",
        "--min-cosine", "0.97", "--min-row-cosine", "0.8", "--output-kind", "y=values",
        "--goal", "bytes", "--input-shape", "x:1,4", "--input-shape", "a:b:2", "--threads", "2",
        "--seed", "7", "--force", "--no-latency",
    )  # fmt: skip
    assert code == 0
    (given,) = calls.given
    assert str(given["passes"]) == "eliminate-identity"
    assert given["output"] == tmp_path / "o.onnx"
    assert (given["calibration"], given["evaluation"]) == ("c.npz", "m:f")
    floors = given["floors"]
    assert floors == onnxslim.Floors(0.5, 0.9, 30.0, 0.97, 0.8)
    assert given["output_kinds"] == {"y": "values"}
    assert given["goal"] == "bytes"
    assert given["input_shapes"] == {"x": (1, 4), "a:b": (2,)}
    assert (given["threads"], given["seed"], given["force"]) == (2, 7, True)
    assert (given["verify"], given["measure"]) == (True, False)


def test_recipe_fills_in_what_the_command_line_does_not_say(
    model: Path, calls: Calls, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('passes = "eliminate-identity"\nseed = 5\nthreads = 3\nverify = false\n')
    assert run(model, "--recipe", recipe, "--seed", "9") == 0
    (given,) = calls.given
    assert (given["seed"], given["threads"], given["verify"]) == (9, 3, False)
    assert str(given["passes"]) == "eliminate-identity"


def test_quiet_says_nothing(model: Path, calls: Calls, capsys: Said) -> None:
    assert run(model, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_verbose_tells_what_is_going_on(model: Path, calls: Calls, capsys: Said) -> None:
    assert run(model, "--verbose") == 0
    shown = calls.given[0]["progress"]
    assert isinstance(shown, Progress)
    with shown.step("timing", 40, "placements"):
        pass
    told = capsys.readouterr().err
    assert re.fullmatch(r"onnxslim: \d\d:\d\d:\d\d timing 1 of 40 placements\n", told)


def test_report_is_json(model: Path, calls: Calls, tmp_path: Path) -> None:
    assert run(model, "--report", tmp_path / "r.json") == 0
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["output"]["path"] == "out.onnx"
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "r.json"]


# ------------------------------------------------------------------- refused before any work


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--passes", "simplfy"], "There is no pass `simplfy`. Did you mean `simplify`?"),
        (["--passes", ""], "The pipeline is empty"),
        (["--passes", "simplify:skp=x"], "no option `skp`. Did you mean `skip`?"),
        (["--pases", "simplify"], "--pases"),
        (["--goal", "speed"], "'speed' is not one of 'both', 'latency', 'bytes'"),
        (["--max-drop", "-1", "--eval", "e.npz"], "must be a number in [0, 100]; got '-1'"),
        (["--max-drop", "1"], "give --eval"),
        (["--min-agreement", "1.5"], "must be a number in [0, 1]; got '1.5'"),
        (["--min-agreement", "nan"], "must be a number in [0, 1]; got 'nan'"),
        (["--min-agreement", "0.9", "--no-verify"], "--no-verify"),
        (["--min-sqnr", "x"], "must be a number at least 0; got 'x'"),
        (["--threads", "0"], "must be an integer at least 1; got '0'"),
        (["--threads", "1.5"], "must be an integer at least 1; got '1.5'"),
        (["--seed", "-1"], "must be an integer in [0, "),
        (["--input-shape", "x"], "must be NAME:1,3,224,224"),
        (["--input-shape", "x:1,0"], "must be NAME:1,3,224,224"),
        (["--input-shape", "x:1,N"], "must be NAME:1,3,224,224"),
        (["--input-shape", "x:1", "--input-shape", "x:2"], "the shape of `x` twice"),
        (["--quiet", "--verbose"], "exclude each other"),
        (["--recipe", "none.toml"], "no such file"),
        (["--report", "no/such/folder/r.json"], "the folder `no/such/folder` does not exist"),
        (["no/such/folder/o.onnx"], "the folder `no/such/folder` does not exist"),
        (["."], "`.` is a folder; give a file name."),
        (["o.onnx", "--report", "o.onnx"], "give the report a name of its own"),
        (["a.onnx", "b.onnx"], "To run several models, give --out-dir DIR."),
        (["a.onnx", "--output", "b.onnx"], "The output is given twice"),
        (["--output", "b.onnx", "--out-dir", "d"], "leave one of them out"),
        (["--trace", "-"], "--trace takes the name of a file"),
    ],
)
def test_bad_request_is_exit_code_2_and_one_sentence(
    model: Path, calls: Calls, capsys: Said, arguments: list[str], part: str
) -> None:
    assert run(model, *arguments) == 2
    assert calls.given == []
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("onnxslim: error: ")
    assert part in err
    assert len(err.rstrip().split("\n")) in (1, 3)  # with or without the place in the pipeline


def test_output_that_is_the_input_is_refused(model: Path, calls: Calls, capsys: Said) -> None:
    before = model.read_bytes()
    (model.parent / "link.onnx").symlink_to(model)
    for name in ("model.onnx", "link.onnx"):
        assert run(model, model.parent / name) == 2
        assert "is the input itself" in capsys.readouterr().err
    assert run(model, "--report", model) == 2
    assert calls.given == []
    assert model.read_bytes() == before


def test_misspelt_command_is_not_taken_for_a_file(model: Path, capsys: Said) -> None:
    assert run("inspct", model) == 2
    assert "Did you mean the command `onnxslim inspect`?" in capsys.readouterr().err


# ------------------------------------------------------------------- errors and exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("bad"), 2),
        (ModelError("bad"), 3),
        (FloorMissed("bad"), 4),
        (PromiseBroken("bad"), 5),
        (RuntimeFailure("bad"), 6),
    ],
)
def test_every_error_has_its_exit_code(
    model: Path, calls: Calls, capsys: Said, error: OnnxslimError, code: int
) -> None:
    calls.error = error
    assert run(model) == code
    assert capsys.readouterr() == ("", "onnxslim: error: bad\n")


def test_missed_floor_still_shows_and_writes_the_report(
    model: Path, calls: Calls, capsys: Said, tmp_path: Path
) -> None:
    error = FloorMissed("too low")
    error.report = report()
    calls.error = error
    assert run(model, "--report", tmp_path / "r.json") == 4
    assert json.loads((tmp_path / "r.json").read_text())["passes"][0]["spec"] == "simplify"
    out, err = capsys.readouterr()
    assert out.startswith("step")
    assert err == "onnxslim: error: too low\n"


def test_unexpected_exception_is_a_sentence_and_a_traceback_only_when_asked(
    model: Path, calls: Calls, capsys: Said
) -> None:
    calls.error = ValueError("broken\nmodel")
    assert run(model) == 5
    err = capsys.readouterr().err
    assert "internal error, which is a bug in onnxslim: ValueError: broken model." in err
    assert "--verbose" in err
    assert "Traceback" not in err
    assert run(model, "--verbose") == 5
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_130_and_one_line(model: Path, calls: Calls, capsys: Said) -> None:
    calls.error = KeyboardInterrupt()
    assert run(model) == 130
    assert capsys.readouterr().err.strip() == "onnxslim: error: interrupted."


def test_lack_of_memory_is_a_sentence(model: Path, calls: Calls, capsys: Said) -> None:
    calls.error = MemoryError()
    assert run(model) == 6
    assert "not enough memory" in capsys.readouterr().err


def test_error_text_cannot_write_to_the_terminal(model: Path, calls: Calls, capsys: Said) -> None:
    calls.error = ModelError("node `a\x1b[2Jb` is bad")
    assert run(model) == 3
    assert capsys.readouterr().err == "onnxslim: error: node `a\\x1b[2Jb` is bad\n"


def test_report_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        write_atomically(tmp_path / "none" / "r.json", b"text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_atomically(tmp_path / "folder", b"text")
    assert os.listdir(tmp_path) == ["folder"]
    write_atomically(tmp_path / "r.json", b"text")
    assert (tmp_path / "r.json").read_text() == "text"


# ------------------------------------------------------------------- the other commands


def test_version_and_help_name_the_commands(capsys: Said) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"onnxslim {onnxslim.__version__}\n"
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("compress", "passes", "inspect", "compare", "bench"))
    for name in ("compress", "passes", "inspect", "compare", "bench", "demo"):
        assert run(name, "--help") == 0
        assert f"onnxslim {name}" in capsys.readouterr().out


def test_no_arguments_show_the_help(capsys: Said) -> None:
    assert run() == 2
    assert capsys.readouterr().out.startswith("Usage: onnxslim MODEL [OUTPUT] [OPTIONS] | ")


def test_passes_lists_all_with_fidelity_and_summary(capsys: Said) -> None:
    assert run("passes") == 0
    out = capsys.readouterr().out
    assert "eliminate-identity" in out
    summary = (registry.get("eliminate-identity").__doc__ or "").split("\n")[0]
    assert summary
    assert summary in out
    assert "(preset)" in out
    assert "cannot be used" not in out


def test_page_of_a_pass_has_its_sections_and_options(capsys: Said) -> None:
    assert run("passes", "eliminate-identity") == 0
    out = capsys.readouterr().out
    assert "Declines when:" in out
    assert "EXACT: outputs keep every bit" in out
    assert run("passes", "simplify") == 0
    out = capsys.readouterr().out
    assert "skip" in out
    assert "passes to leave out" in out
    assert run("passes", "simplfy") == 2


def test_inspect_shows_what_is_in_a_model(model: Path, capsys: Said) -> None:
    assert run("inspect", model) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.split("\n")]
    assert ["nodes", "3"] in lines
    assert ["parameters", "12"] in lines
    assert ["opset", "17"] in lines
    assert ["MatMul", "nodes", "1"] in lines
    assert "input   x: float[N, 4]" in out
    assert "output  y: float[N, 3]" in out
    assert "weight  w: float[4, 3], 48 B" in out


def test_inspect_shows_several_models_side_by_side_and_as_json(model: Path, capsys: Said) -> None:
    other = model.with_name("other.onnx")
    onnx.save(parse(TEXT.replace("Relu", "Sigmoid")), other)
    assert run("inspect", model, other) == 0
    lines = [line.split() for line in capsys.readouterr().out.split("\n")]
    assert ["Relu", "nodes", "1", "-"] in lines
    assert ["Sigmoid", "nodes", "-", "1"] in lines
    assert run("inspect", "--json", model, other) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["inputs"] == [{"name": "x", "dtype": "float", "shape": ["N", 4]}]
    assert first["weights"] == [{"dtype": "float", "tensors": 1, "elements": 12, "bytes": 48}]
    assert first["opsets"] == {"ai.onnx": 17}
    assert second["operators"] == {"Identity": 1, "MatMul": 1, "Sigmoid": 1}


def test_inspect_counts_bodies_functions_and_foreign_operators(
    tmp_path: Path, capsys: Said
) -> None:
    path = tmp_path / "nested.onnx"
    text = """<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>
    g (bool c, float[2] x) => (float[2] y) {
        z = my.domain.Twice (x)
        y = If (c) <
            then_branch = t () => (float[2] u) { u = Relu (z) },
            else_branch = e () => (float[2] v) { v = Neg (z) }
        >
    }
    <domain: "my.domain", opset_import: ["" : 17]>
    Twice (a) => (b) { b = Add (a, a) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    assert run("inspect", "--json", path) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["operators"] == {"If": 1, "Neg": 1, "Relu": 1, "my.domain.Twice": 1}
    assert found["functions"] == {"my.domain.Twice": 1}
    assert run("inspect", path) == 0
    assert "function  my.domain.Twice, 1 nodes" in capsys.readouterr().out


def test_inspect_names_types_that_are_no_tensors(tmp_path: Path, capsys: Said) -> None:
    make = onnx.helper
    sequence = make.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    result = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = make.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)
    graph = make.make_graph([node], "g", [sequence], [result])
    opsets = [make.make_opsetid("", 17)]
    onnx.save(make.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "s.onnx")
    assert run("inspect", tmp_path / "s.onnx") == 0
    out = capsys.readouterr().out
    assert "input   s: sequence(float)\n" in out
    assert "output  y: float, shape unknown" in out


def test_compare_shows_drift_sizes_and_latency(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    found = Comparison({"y": DRIFT}, {"y": DRIFT})
    answer = (found, PAIR, STATS, STATS, "calibration: 5 samples")
    monkeypatch.setattr(api, "compare_models", lambda a, b, **given: answer)
    assert run("compare", model, model) == 0
    out = capsys.readouterr().out
    row = ["y", "classes", "0.25", "0.1", "20.0", "dB", "0.990000", "50.00", "%", "differ"]
    assert row in [line.split() for line in out.split("\n")]
    assert "latency 2.00 -> 1.00 ms, 2.00x (1.90 to 2.10)" in out
    assert "calibration: 5 samples" in out
    assert run("compare", model, model, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["drift"]["y"]["max_abs"] == 0.25
    assert data["latency"]["ratio"] == 2.0


def test_bench_shows_medians_with_spread(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    rows = [("a.onnx", PAIR.before, None), ("b.onnx", PAIR.after, PAIR)]
    asked: list[float | None] = []

    def timed(models: object, *, seconds: float | None, **given: object) -> object:
        asked.append(seconds)
        return rows

    monkeypatch.setattr(api, "bench_models", timed)
    assert run("bench", model, model, "--seconds", "0.5") == 0
    out = capsys.readouterr().out
    assert "2.00 -> 1.00 ms, 2.00x (1.90 to 2.10)" in out
    assert run("bench", model, model, "--json") == 0
    assert json.loads(capsys.readouterr().out)[1]["against_first"]["ratio_low"] == 1.9
    assert asked == [0.5, None]


@pytest.mark.parametrize("seconds", ["0", "inf", "nan", "long"])
def test_bench_takes_so_many_seconds(model: Path, seconds: str, capsys: Said) -> None:
    assert run("bench", model, "--seconds", seconds) == 2
    assert "'--seconds': must be a number in (0, 3600]" in capsys.readouterr().err


# ------------------------------------------------------------------- the real command


def command(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnxslim", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


def test_real_run_writes_a_smaller_model_that_stays_the_same_function(
    model: Path, tmp_path: Path
) -> None:
    done = command(
        model, tmp_path / "o.onnx", "-p", "eliminate-identity", "--no-latency", "--no-verify",
        "--report", tmp_path / "r.json", "--explain",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "removed a no-op Identity" in done.stdout
    assert len(Model.load(tmp_path / "o.onnx").graph.nodes) == 2
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["passes"][0]["changes"]
    assert data["command"].startswith("onnxslim ")
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "o.onnx", "r.json"]


def test_real_run_with_everything_on_proves_what_it_wrote(model: Path, tmp_path: Path) -> None:
    done = command(model, "--report", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert "outputs equal" in " ".join(done.stdout.split())
    data = json.loads((tmp_path / "r.json").read_text())
    (step,) = data["passes"]
    assert step["committed"]
    assert step["drift_original"]["y"]["max_abs"] <= 1e-6
    assert data["before"]["latency_ms"]["runs"] > 0
    assert not data["verified_on"].startswith("not verified")
    compared = command("compare", "--json", model, tmp_path / "model.slim.onnx")
    assert compared.returncode == 0, compared.stderr
    found = json.loads(compared.stdout)
    assert found["b"]["stats"]["nodes"] < found["a"]["stats"]["nodes"]
    assert list(found["drift"]) == ["y"]


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x00\x01garbage, no protobuf at all" * 9)


def _text(path: Path) -> None:
    path.write_text("hello, I am no model")


def _missing(path: Path) -> None:
    path.unlink()


def _unchanged(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "arguments", "code", "part"),
    [
        (_empty, [], 3, "is empty"),
        (_truncated, [], 3, "model.onnx"),
        (_garbage, [], 3, "model.onnx"),
        (_text, [], 3, "model.onnx"),
        (_missing, [], 2, "There is no file"),
        (_unchanged, ["model.onnx"], 2, "is the input itself"),
        (_unchanged, ["none/o.onnx"], 2, "does not exist"),
        (_unchanged, ["-p", "simplfy"], 2, "Did you mean `simplify`?\n"),
        (_unchanged, ["-p", "simplify:skp=a"], 2, "Did you mean `skip`?"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    model: Path, damage: Callable[[Path], None], arguments: list[str], code: int, part: str
) -> None:
    damage(model)
    before = {path.name: path.read_bytes() for path in model.parent.iterdir()}
    done = command("model.onnx", *arguments, folder=model.parent)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("onnxslim: error: ")
    assert part.strip() in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in model.parent.iterdir()} == before


def test_reader_that_goes_away_is_no_error(model: Path) -> None:
    code = f"{sys.executable} -m onnxslim inspect --json {model} {model} {model} | true"
    shell = ["bash", "-c", f"set -o pipefail; {code}"]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_signal_leaves_nothing_behind(
    model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "from onnxslim import api, cli\n"
        # a shell that started the tests in the background lets them ignore SIGINT
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from onnxslim.io.model import Model\n"
        "def slow(model, output, **given):\n"
        "    with Model.load(model).stage(Path(output)):\n"
        "        print('staged', flush=True)\n"
        "        time.sleep(60)\n"
        "api.compress = slow\n"
        "sys.argv = ['onnxslim', 'model.onnx']\n"
        "cli.main()\n"
    )
    before = sorted(os.listdir(tmp_path))
    process = subprocess.Popen(
        [sys.executable, script.name], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "staged\n"
    time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert sorted(os.listdir(tmp_path)) == before


def test_output_that_cannot_show_a_name_shows_its_escape(model: Path) -> None:
    named = parse(TEXT)
    named.producer_name = "工具"
    onnx.save(named, model)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "onnxslim", "inspect", str(model)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "\\u5de5\\u5177" in done.stdout


def test_installed_command_is_there() -> None:
    found = shutil.which("onnxslim", path=str(Path(sys.executable).parent))
    assert found is not None
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"onnxslim {onnxslim.__version__}\n"
