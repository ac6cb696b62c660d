"""`onnxslim pack` and `onnxslim unpack`, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said
from onnx import TensorProto, helper, numpy_helper

from onnxslim import cli
from onnxslim.packing import is_packed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    weight = np.round(rng.standard_normal((64, 128)) * 2).astype(np.float32)
    bias = rng.standard_normal(128).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 128])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    imports = [helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def test_pack_then_unpack(model: Path, tmp_path: Path, capsys: Said) -> None:
    assert cli.run(["pack", str(model)]) == 0
    said = capsys.readouterr().out
    for word in ("few distinct values", "Huffman", "entropy coder", "zstd", "order-0 entropy"):
        assert word in said
    assert f"wrote {tmp_path / 'model.onnxz'}" in said
    assert cli.run(["unpack", str(tmp_path / "model.onnxz"), str(tmp_path / "back.onnx")]) == 0
    assert (tmp_path / "back.onnx").read_bytes() == model.read_bytes()


def test_unpack_names_its_output_after_the_file(model: Path, tmp_path: Path) -> None:
    content = model.read_bytes()
    assert cli.run(["pack", str(model), "-q"]) == 0
    model.unlink()
    assert cli.run(["unpack", str(tmp_path / "model.onnxz"), "-q"]) == 0
    assert model.read_bytes() == content


@pytest.mark.parametrize("coder", ["entropy", "huffman", "zstd"])
def test_the_coder_can_be_chosen(model: Path, tmp_path: Path, coder: str) -> None:
    packed, back = str(tmp_path / "m.onnxz"), str(tmp_path / "back.onnx")
    assert cli.run(["pack", str(model), packed, "--coder", coder, "-q"]) == 0
    assert cli.run(["unpack", packed, back, "-q"]) == 0
    assert Path(back).read_bytes() == model.read_bytes()


def test_quiet_says_nothing(model: Path, tmp_path: Path, capsys: Said) -> None:
    assert cli.run(["pack", str(model), "--quiet"]) == 0
    assert cli.run(["unpack", str(tmp_path / "model.onnxz"), str(tmp_path / "b"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_the_report_holds_the_table(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert cli.run(["pack", str(model), "--report", str(report), "-q"]) == 0
    data = json.loads(report.read_text("utf-8"))
    packed = (tmp_path / "model.onnxz").stat().st_size
    assert data["output"] == {"path": str(tmp_path / "model.onnxz"), "bytes": packed}
    assert data["total"]["packed_bytes"] == packed
    assert data["ratio"] == model.stat().st_size / packed
    assert data["zstd_of_file"]["level"] == 19
    assert [item["class"] for item in data["classes"]][-1] == "graph"
    assert all(item["huffman_bytes"] is not None for item in data["classes"])


def test_a_damaged_file_is_one_sentence_and_exit_code_3(
    model: Path, tmp_path: Path, capsys: Said
) -> None:
    assert cli.run(["pack", str(model), "-q"]) == 0
    packed = tmp_path / "model.onnxz"
    packed.write_bytes(packed.read_bytes()[:-1])
    for arguments in (["unpack", str(packed)], ["inspect", str(packed)], [str(packed)]):
        assert cli.run(arguments) == 3
        said = capsys.readouterr().err
        assert "is a packed file that cannot be used: it should go on for" in said
        assert said.count("\n") == 1
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.onnx", "model.onnxz"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["pack", "MODEL", "MODEL"], "is the input itself"),
        (["pack", "MODEL", "NONE/out.onnxz"], "does not exist"),
        (["pack", "NONE"], "There is no file"),
        (["pack", "MODEL", "--report", "MODEL"], "is the model"),
        (["pack", "MODEL", "--coder", "best"], "best"),
        (["pack", "MODEL", "-q", "-v"], "exclude each other"),
        (["unpack", "MODEL", "NONE"], "is not a packed file"),
        (["unpack", "MODEL"], "is the input itself"),
    ],
)
def test_wrong_requests_are_exit_code_2(
    model: Path, tmp_path: Path, capsys: Said, arguments: list[str], word: str
) -> None:
    places = {"MODEL": str(model), "NONE": str(tmp_path / "none")}
    for name, place in places.items():
        arguments = [item.replace(name, place) for item in arguments]
    assert cli.run(arguments) == 2
    assert word in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def test_inspect_compare_and_compress_take_a_packed_file(
    model: Path, tmp_path: Path, capsys: Said
) -> None:
    assert cli.run(["pack", str(model), "-q"]) == 0
    packed, out = str(tmp_path / "model.onnxz"), tmp_path / "out.onnx"
    assert cli.run(["inspect", packed]) == 0
    assert "packed into" in capsys.readouterr().out
    assert cli.run(["compare", str(model), packed]) == 0
    assert "equal" in capsys.readouterr().out
    assert cli.run([packed, str(out), "--no-latency", "-q"]) == 0
    assert not is_packed(out.read_bytes())
    onnx.checker.check_model(str(out))
