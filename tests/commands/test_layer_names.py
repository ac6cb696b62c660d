"""Layers are named as viewers show them: by node, by weight, by output."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from command import Said, run
from layer_nets import dense_net, net, node, normal

QUICK = ("--no-latency", "--no-floor")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    source = dense_net(8, 60, 60, 4)
    source.graph.node[0].name = "/fc1/Gemm"
    path = tmp_path / "model.onnx"
    onnx.save(source, path)
    return path


def changed(model: Path, passes: str) -> set[str]:
    """The nodes that a pipeline changes."""
    report = model.with_name("report.json")
    assert run(model, "--passes", passes, *QUICK, "--report", report, "--overwrite") == 0
    steps = json.loads(report.read_text())["passes"]
    return {change["node"] for step in steps for change in step["changes"]}


@pytest.mark.parametrize("pattern", ["h0", "/fc1/Gemm", "/fc1/*", "w0", "b0"])
def test_a_layer_is_meant_by_any_of_its_names(model: Path, pattern: str) -> None:
    assert changed(model, f"prune-weights:only={pattern}") == {"h0"}
    assert changed(model, f"prune-weights:skip={pattern}") == {"h1", "y"}
    assert changed(model, f"convert-fp16:compute=float16:only={pattern}") >= {"h0"}


def test_values_for_a_layer_take_any_of_its_names(model: Path) -> None:
    for name in ("h0", "/fc1/Gemm", "w0"):
        assert changed(model, f"factorize-dense:plan='{name}=svd/2'") == {"h0"}
        assert changed(model, f"prune-weights:ratio=0:ratio-of='{name}=0.5'") == {"h0"}
        assert changed(model, f"prune-channels:plan='{name}=20'") >= {"h0"}


@pytest.mark.parametrize(
    ("passes", "told"),
    [
        ("prune-weights:only=w00", "Option `only` of `prune-weights` names `w00`"),
        ("prune-weights:skip=zzz*", "Its layers are `h0`"),
        ("simplify,quantize-weights:only=/fc1/Gem", "Did you mean `/fc1/Gemm`"),
        ("fuse-pad:skip=zzz", "Option `skip` of `fuse-pad` names `zzz`"),
        ("simplify:skip='fuse-pad=zzz'", "Option `skip` of `fuse-pad` names `zzz`"),
        ("prune-weights:only=r0", "names `r0`, which the pass does not work on"),
        ("prune-weights:only=r00", "Its layers are `h0`, `h1`, `y`"),  # no Relu
        ("prune-channels:only=r00", "Its layers are `h0`, `h1`"),
        ("prune-channels:plan='w00=3'", "Option `plan` of `prune-channels` names `w00`"),
    ],
)
def test_a_pattern_that_matches_nothing_is_a_usage_error(
    model: Path, capsys: Said, passes: str, told: str
) -> None:
    assert run(model, "--passes", passes, *QUICK) == 2
    assert told in capsys.readouterr().err
    assert not model.with_name("model.slim.onnx").exists()


def test_what_a_pass_leaves_alone_anyway_may_be_skipped(model: Path) -> None:
    assert changed(model, "prune-weights:skip=r0") == {"h0", "h1", "y"}


def test_a_name_of_several_layers_means_all_of_them_and_is_told(
    tmp_path: Path, capsys: Said
) -> None:
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "w"], "y")]
    model = tmp_path / "model.onnx"
    onnx.save(net(nodes, {"w": normal(8, 8)}, ["N", 8]), model)
    assert changed(model, "prune-weights:only=w") == {"a"}  # one weight, named once
    told = " ".join(capsys.readouterr().out.split())
    assert "only names `w`, which 2 layers have; all are meant: `a`, `y`" in told
    assert changed(model, "prune-weights:only=a+y") == {"a"}
    assert "layers have" not in capsys.readouterr().out


def test_reports_add_the_other_names(model: Path, capsys: Said) -> None:
    assert changed(model, "prune-weights") == {"h0", "h1", "y"}
    report = json.loads(model.with_name("report.json").read_text())
    assert report["names"]["h0"] == ["/fc1/Gemm", "w0", "b0"]
    assert run(model, "--passes", "prune-weights", *QUICK, "--explain") == 0
    assert "`h0` (/fc1/Gemm, w0)" in capsys.readouterr().out
