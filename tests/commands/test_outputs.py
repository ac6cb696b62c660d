"""What is written where: files of others are kept, streams, several models, reports of failures."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said, run

from onnxslim import api
from onnxslim.errors import OnnxslimError, PromiseBroken, RuntimeFailure, UsageError
from onnxslim.io.marks import is_marked
from onnxslim.io.model import Model
from onnxslim.run.prepared import PreparedRun
from support import parse

TEXT = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
{
    a = Identity (x)
    b = MatMul (a, w)
    y = Relu (b)
}"""
QUICK = ("--no-latency", "--no-verify")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    onnx.save(parse(TEXT), path)
    return path


# ------------------------------------------------------------------- files of others


def foreign(path: Path) -> bytes:
    onnx.save(parse(TEXT.replace("Relu", "Sigmoid")), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        lambda m, o: (m, o, *QUICK),
        lambda m, o: (m, "-o", o, *QUICK),
        lambda m, o: (m, "--out-dir", o.parent, *QUICK),
        lambda m, o: ("pack", m, o),
        lambda m, o: ("pack", m, "--report", o),
        lambda m, o: ("groups", m, "--report", o),
        lambda m, o: (m, "--report", o, *QUICK),
    ],
)
def test_a_file_of_another_tool_is_never_replaced_unasked(
    model: Path, tmp_path: Path, command: Callable[[Path, Path], tuple[object, ...]], capsys: Said
) -> None:
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "model.onnx"
    content = foreign(other)
    assert run(*command(model, other)) == 2
    assert "onnxslim did not write it" in capsys.readouterr().err
    assert other.read_bytes() == content


@pytest.mark.parametrize("content", [b"notes on onnxslim", b"\x00\x01", b'{"onnxslim": 1}'])
def test_what_is_no_model_is_kept_as_well(model: Path, tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "other"
    other.write_bytes(content)
    assert run(model, other, *QUICK) == 2
    assert run(model, "--report", other, *QUICK) == 2
    assert other.read_bytes() == content
    assert run(model, other, *QUICK, "--overwrite") == 0
    assert is_marked(other)


def test_unpack_replaces_what_it_wrote_and_nothing_else(model: Path, tmp_path: Path) -> None:
    packed, target = tmp_path / "p.onnxz", tmp_path / "again.onnx"
    assert run("pack", model, packed) == 0
    assert run("pack", model, packed) == 0
    for _ in range(2):
        assert run("unpack", packed, "-o", target) == 0
    assert target.read_bytes() == model.read_bytes()
    content = foreign(target)
    assert run("unpack", packed, target) == 2
    assert target.read_bytes() == content
    assert run("unpack", packed, target, "--overwrite") == 0
    assert target.read_bytes() == model.read_bytes()


@pytest.mark.parametrize("passes", ["eliminate-identity", "fuse-pad"])  # something, nothing
def test_a_file_that_onnxslim_wrote_is_replaced(model: Path, passes: str) -> None:
    for _ in range(2):
        assert run(model, "--passes", passes, "--report", "r.json", *QUICK) == 0
    assert model.with_name("model.slim.onnx").exists()


def test_data_of_another_model_stay_where_no_model_is_replaced(model: Path, tmp_path: Path) -> None:
    big = parse(TEXT)
    onnx.save(big, tmp_path / "big.onnx", save_as_external_data=True, size_threshold=0)
    (tmp_path / "o.onnx.data").write_bytes(b"weights of another model")
    assert run("big.onnx", "o.onnx", *QUICK) == 0
    assert (tmp_path / "o.onnx.data").read_bytes() == b"weights of another model"
    onnx.load("o.onnx")


@pytest.mark.parametrize(
    "write",
    [
        lambda given, out, **how: api.compress("model.onnx", out, measure=False, **how),
        lambda given, out, **how: api.compress(parse(TEXT), out, measure=False, **how),
        lambda given, out, **how: api.pack("model.onnx", out, **how),
        lambda given, out, **how: api.unpack(given, out, **how),
    ],
)
def test_python_replaces_no_file_of_others_unasked(
    model: Path, tmp_path: Path, write: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.pack(model, "p.onnxz")
    other = tmp_path / "other.onnx"
    content = foreign(other)
    with monkeypatch.context() as patch:
        patch.setattr("onnxslim.api.loaded", lambda source: pytest.fail("work was done"))
        with pytest.raises(UsageError, match="overwrite=True"):
            write("p.onnxz", other)
    assert other.read_bytes() == content
    write("p.onnxz", other, overwrite=True)
    assert other.read_bytes() != content
    write("p.onnxz", other)  # its own file


# ------------------------------------------------------------------- standard input and output


def test_a_model_goes_through_standard_input_and_output(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxslim", "-", "-", *QUICK],
        input=model.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(Model.load(done.stdout).graph.nodes) == 2
    assert b"eliminate-identity" in done.stderr


class Piped(io.StringIO):
    """Standard input with a content."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.buffer = io.BytesIO(content)  # type: ignore[misc]


@pytest.fixture
def piped(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        monkeypatch.setattr(sys, "stdin", Piped(path.read_bytes()))

    return put


def test_streams_are_refused_where_they_make_no_sense(
    model: Path, capsys: Said, piped: Callable[[Path], None]
) -> None:
    piped(model)
    assert run("-") == 2
    assert "has no name: give OUTPUT" in capsys.readouterr().err
    assert run("-", "o.onnx", *QUICK) == 0
    assert is_marked(Path("o.onnx"))
    assert run("-", "o.onnx", *QUICK) == 2
    assert "it is empty, or was read already" in capsys.readouterr().err
    assert run("-", model, "--out-dir", "d") == 2
    assert "Standard input has no name" in capsys.readouterr().err
    for command in ("pack", "unpack"):
        assert run(command, "-") == 2
        assert "has no name: give OUTPUT" in capsys.readouterr().err
    for option in ("--calib", "--eval", "--recipe", "--trace", "--out-dir"):
        assert run(model, option, "-") == 2
        assert f"{option} takes the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (("inspect", "-"), "MatMul nodes"),
        (("inspect", "-", "model.onnx", "--json"), '"path": "-"'),
        (("groups", "-"), "group 1: 3 units"),
        (("compare", "-", "model.onnx"), "A: -"),
        (("bench", "model.onnx", "-", "--seconds", "0.01", "--json"), '"model": "-"'),
        (
            ("sensitivity", "-", "--calib", "x.npz", "--passes", "quantize-weights"),
            "divergence",
        ),
    ],
)
def test_commands_that_look_take_standard_input(
    model: Path,
    command: tuple[str, ...],
    part: str,
    piped: Callable[[Path], None],
    capsys: Said,
) -> None:
    np.savez("x.npz", x=np.zeros((10, 4), np.float32))
    piped(model)
    assert run(*command) == 0
    assert part in capsys.readouterr().out


def test_a_report_is_explained_from_standard_input(
    model: Path, piped: Callable[[Path], None], capsys: Said
) -> None:
    assert run(model, "--report", "r.json", *QUICK) == 0
    assert run("explain", "r.json") == 0
    named = capsys.readouterr().out
    piped(Path("r.json"))
    assert run("explain", "-") == 0
    assert named.endswith(capsys.readouterr().out)


def test_packed_files_go_through_standard_input_and_output(
    model: Path, piped: Callable[[Path], None], capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    content = model.read_bytes()
    piped(model)
    assert run("pack", "-", "-", "--report", "r.json") == 0
    out, err = capsysbinary.readouterr()
    assert b"smaller" in err
    assert json.loads(Path("r.json").read_text())["output"]["path"] == "-"
    Path("p.onnxz").write_bytes(out)
    piped(Path("p.onnxz"))
    assert run("unpack", "-", "-") == 0
    assert capsysbinary.readouterr().out == content


# ------------------------------------------------------------------- several models


def test_several_models_run_whatever_becomes_of_the_others(
    model: Path, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "sub").mkdir()
    onnx.save(parse(TEXT), tmp_path / "sub" / "model.onnx")
    (tmp_path / "bad.onnx").write_text("no model")
    names = ("model.onnx", "bad.onnx", "none.onnx", "sub/model.onnx")
    assert run(*names, "--out-dir", "out", "--report", "all.json", *QUICK) == 3
    out, err = capsys.readouterr()
    assert "`bad.onnx`" in err
    assert "There is no file `none.onnx`" in err
    rows = [line.split() for line in out.split("\n")]
    assert ["bad.onnx", "3", "ModelError"] in rows
    assert ["none.onnx", "2", "UsageError"] in rows
    for name in ("model.onnx", "sub/model.onnx"):
        assert is_marked(tmp_path / "out" / name)
        assert any(row[:1] == [name] and row[-2:] == ["wrote", f"out/{name}"] for row in rows)
    found = json.loads((tmp_path / "all.json").read_text())["models"]
    assert [item["input"]["path"] for item in found] == list(names)
    assert [item["error"] and item["error"]["exit_code"] for item in found] == [None, 3, 2, None]


def test_models_of_one_name_or_in_their_own_place_are_refused(model: Path, capsys: Said) -> None:
    assert run("model.onnx", "model.onnx", "--out-dir", "out") == 0  # the same one twice
    Path("model.onnxz").write_bytes(b"")
    assert run("model.onnx", "model.onnxz", "--out-dir", "out") == 2
    assert "would both be written to `out/model.onnx`" in capsys.readouterr().err
    assert run("model.onnx", "--out-dir", ".") == 2
    assert "is the folder of `model.onnx` itself" in capsys.readouterr().err


# ------------------------------------------------------------------- strict


@pytest.mark.parametrize(
    ("passes", "part"),
    [
        ("fuse-pad", "fuse-pad: there was nothing for it to change"),
        ("simplify,eliminate-identity,fuse-pad", "eliminate-identity: "),
        ("raise-opset:to=13", "raise-opset:to=13: "),
    ],
)
def test_strict_wants_every_step_to_do_something(
    model: Path, passes: str, part: str, capsys: Said
) -> None:
    assert run(model, "--passes", passes, *QUICK) == 0
    assert run(model, "--passes", passes, *QUICK, "--strict", "--report", "r.json") == 4
    assert part in capsys.readouterr().err
    data = json.loads(Path("r.json").read_text())
    assert (data["error"]["type"], data["error"]["exit_code"]) == ("StepIdle", 4)
    assert model.with_name("model.slim.onnx").exists()


def test_strict_is_content_where_every_step_did_something(model: Path) -> None:
    assert run(model, "--passes", "simplify", *QUICK, "--strict") == 0


# ------------------------------------------------------------------- reports of failures


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PromiseBroken("bad"), 5),
        (RuntimeFailure("bad"), 6),
        (ValueError("bad"), 5),
        (MemoryError(), 6),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
    ],
)
def test_what_ends_a_run_is_in_its_report(
    model: Path, error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(PreparedRun, "report", fail)  # after the steps
    assert run(model, "--passes", "eliminate-identity", *QUICK, "--report", "r.json") == code
    data = json.loads(Path("r.json").read_text())
    assert data["error"]["exit_code"] == code
    assert data["error"]["type"] == type(error).__name__
    said = capsys.readouterr().err.strip()  # click breaks the line of an interruption
    assert said == f"onnxslim: error: {data['error']['message']}"
    assert data["input"]["sha256"]
    assert data["output"]["path"] is None
    assert data["passes"][0]["changes"]
    assert not model.with_name("model.slim.onnx").exists()


def test_a_model_that_is_opened_and_refused_has_a_report(model: Path) -> None:
    broken = parse(TEXT)
    broken.graph.node[1].op_type = "MatMull"
    onnx.save(broken, model)
    code = run(model, "--report", "r.json")
    data = json.loads(Path("r.json").read_text())
    assert code == data["error"]["exit_code"] != 0
    assert data["before"]["stats"]["nodes"] == 3
    assert data["passes"] == []


def test_an_error_before_a_model_is_opened_has_no_report(model: Path) -> None:
    model.write_bytes(b"")
    assert run(model, "--report", "r.json") == 3
    assert not Path("r.json").exists()


def test_errors_of_the_python_api_carry_the_report(model: Path) -> None:
    broken = parse(TEXT)
    broken.graph.node[1].op_type = "MatMull"
    with pytest.raises(OnnxslimError) as caught:
        api.compress(broken)
    assert caught.value.__dict__["report"].before.stats.nodes == 3
