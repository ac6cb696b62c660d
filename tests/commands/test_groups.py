from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from channel_nets import net
from command import Said, run

NET = """
g (float[N,3,6,6] x, bool c) => (float[N,5,6,6] y, float[N,8,6,6] z)
<float[8,3,1,1] w0, float[6,8,1,1] w1, float[8,6,1,1] w2, float[8,1,3,3] w3, float[8] s,
 float[5,8,1,1] w4, float[8,8,1,1] w5, uint8[5,5,1,1] q, float q_scale> {
  a = Conv (x, w0)
  h = Conv (a, w1)
  b = Conv (h, w2)
  sum = Add (a, b)
  d = Conv <group = 8, pads = [1,1,1,1]> (sum, w3)
  e = Conv (d, w4)
  v = DequantizeLinear (q, q_scale)
  y = Conv (e, v)
  z = If (c) <
    then_branch = t () => (float[N,8,6,6] p) { p = Conv (a, w5) },
    else_branch = f () => (float[N,8,6,6] r) { r = Relu (a) }
  >
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(net(NET), path)
    return path


def test_groups_are_shown_with_their_layers_and_what_keeps_them(model: Path, capsys: Said) -> None:
    before = model.read_bytes()
    assert run("groups", model) == 0
    lines = capsys.readouterr().out.split("\n")
    first = lines.index("group 1: 8 units, 0 may leave")
    assert lines[first + 1 : first + 4] == [
        "  written by  a (8), b (8)",
        "  passed by   d (Conv)",
        "  read by     h, e",
    ]
    assert lines[first + 4] == "          8 stay: it is used in a body of `z` (If)"
    assert "group 2: 6 units, 6 may leave" in lines
    assert lines[-2] == "3 groups: 6 of 19 units may leave, with 6 of 27 channels of 4 layers"
    assert model.read_bytes() == before


def test_layers_that_are_left_alone_are_listed_with_the_reason(model: Path, capsys: Said) -> None:
    assert run("groups", model) == 0
    lines = capsys.readouterr().out.split("\n")
    start = lines.index("left alone: 2")
    assert lines[start + 1 : start + 3] == [
        "  `y`: its weight is dequantized (DequantizeLinear)",
        "  `p`: it lies in the body `then_branch` of `z` (If)",
    ]


def test_the_report_of_groups_holds_all_names(model: Path, tmp_path: Path, capsys: Said) -> None:
    report = tmp_path / "groups.json"
    assert run("groups", model, "--report", report, "--quiet") == 0
    assert capsys.readouterr().out == ""
    found = json.loads(report.read_text())
    assert found["input"]["path"] == str(model)
    first, second, third = found["groups"]
    assert first["written_by"] == [
        {"node": "a", "names": ["w0"], "channels": 8},
        {"node": "b", "names": ["w2"], "channels": 8},
    ]
    assert first["pins"] == [{"why": "it is used in a body of `z` (If)", "units": 8}]
    assert first["passed_by"] == [{"node": "d", "op": "Conv"}]
    assert (second["units"], second["free_units"], second["pins"]) == (6, 6, [])
    assert third["name"] == "e"
    assert {skip["node"] for skip in found["left_alone"]} == {"y", "p"}
    assert found["totals"] == {
        "groups": 3, "units": 19, "free_units": 6, "layers": 4, "channels": 27, "free_channels": 6,
    }  # fmt: skip


def test_long_lists_of_layers_are_shortened_unless_asked_for(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "chain.onnx"
    weights = ", ".join(f"float[8,8,1,1] w{i}" for i in range(9))
    nodes = "\n".join(f"h{i} = Conv (a, w{i})" for i in range(9))
    sums = "y0 = Sum (" + ", ".join(f"h{i}" for i in range(9)) + ")"
    text = f"""g (float[2,3,4,4] x) => (float[2,5,4,4] y)
    <float[8,3,1,1] w, {weights}, float[5,8,1,1] v> {{
      a = Conv (x, w)
      {nodes}
      {sums}
      y = Conv (y0, v)
    }}"""
    onnx.save(net(text), path)
    assert run("groups", path) == 0
    out = capsys.readouterr().out
    assert "  read by     h0, h1, h2, h3, h4, h5 and 3 more" in out
    assert run("groups", path, "--verbose") == 0
    readers = ", ".join(f"h{i} (w{i})" for i in range(9))
    assert f"  read by     {readers}\n" in capsys.readouterr().out


def test_constants_that_nodes_compute_are_pointed_out(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "scaled.onnx"
    text = """g (float[2,3,4,4] x) => (float[2,5,4,4] y)
    <float[8,3,1,1] w, float[8] s, int64[2] axes = {1, 2}, float[5,8,1,1] v> {
      a = Conv (x, w)
      u = Unsqueeze (s, axes)
      m = Sigmoid (a)
      p = Mul (m, u)
      y = Conv (p, v)
    }"""
    onnx.save(net(text), path)
    assert run("groups", path) == 0
    out = capsys.readouterr().out
    assert "8 stay: `p` (Mul) joins them with `u`" in out
    assert "note: constants that nodes compute are not followed (nodes: 1)" in out
    assert run("groups", path, "--passes", "simplify") == 0
    out = capsys.readouterr().out
    assert "group 1: 8 units, 8 may leave" in out
    assert "note:" not in out


def test_layers_of_operators_that_are_not_followed_are_listed(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "recurrent.onnx"
    text = """g (float[5,N,6] x, float[3,7] t) => (float[5,1,N,3] y, float[3,4] z, float[4,5] u)
    <float[6,8] w0, float[1,12,8] w, float[1,12,3] r, float[7,4] w1, float[4,3] w2, float[3,5] w3> {
      a = MatMul (x, w0)
      y, h, c = LSTM <hidden_size = 3> (a, w, r)
      z = Einsum <equation = "ij,jk->ik"> (t, w1)
      u = MatMul (w2, w3)
    }"""
    onnx.save(net(text), path)
    assert run("groups", path) == 0
    out = capsys.readouterr().out
    assert "`y`: it is a LSTM, which is not followed" in out
    assert "`z`: it is a Einsum, which is not followed" in out
    assert "`u`: all its operands are constant" in out


def test_a_model_without_layers_has_no_groups(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "plain.onnx"
    onnx.save(net("g (float[2] x) => (float[2] y) { y = Relu (x) }"), path)
    assert run("groups", path) == 0
    assert capsys.readouterr().out == (
        "0 groups: 0 of 0 units may leave, with 0 of 0 channels of 0 layers\n"
    )


def test_wrong_requests_for_groups_are_refused(model: Path, tmp_path: Path, capsys: Said) -> None:
    assert run("groups", tmp_path / "none.onnx") == 2
    assert run("groups", model, "--report", model) == 2
    assert "give the report a name of its own" in capsys.readouterr().err
    assert run("groups", model, "--report", tmp_path / "none" / "r.json") == 2
    assert run("groups", model, "--quiet", "--verbose") == 2
    assert run("groups", model, "--passes", "simplfy") == 2
    assert "Did you mean" in capsys.readouterr().err
