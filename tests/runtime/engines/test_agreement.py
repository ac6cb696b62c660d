"""Files in other engines, where these are installed, in the forms that each takes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from command import Said
from command import run as run_command
from layer_nets import conv_and_dense, rewritten, samples

from onnxslim.errors import UsageError
from onnxslim.runtime.engines.agreement import agreement
from onnxslim.runtime.engines.opened import EngineFailure
from onnxslim.runtime.engines.opening import ENGINES, require_engine

X = samples(16, 2, 6, 6)
FORMS = (
    "simplify",
    "prune-weights:ratio=0.97:criterion=magnitude",
    "cluster-weights:values=16",
    "ternarize-weights",
    "quantize-fixed-point",
    "quantize-weights:bits=8",
    "quantize-weights:bits=4",
    "quantize-weights:bits=4:form=dequantize",
    "quantize-weights:bits=4:form=matmul-nbits",
    "quantize-int8:placement=all",
    "convert-fp16",
    "convert-fp16:compute=float16",
)


def reason(engine: str) -> str:
    """Why an engine cannot be had here; "" where it can."""
    try:
        require_engine(engine)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", FORMS)
def test_a_file_for_an_engine_agrees_there(engine: str, form: str, tmp_path: Path) -> None:
    if why := reason(engine):
        pytest.skip(why)
    model, _ = rewritten(conv_and_dense(), X, form, f"retarget:to={engine}")
    path = tmp_path / "m.onnx"
    model.save(path)
    assert "agrees with onnxruntime" in agreement(engine, path, [{"x": X[:2]}], {}, threads=1)


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_what_an_engine_refuses_is_an_error(tmp_path: Path) -> None:
    model, _ = rewritten(conv_and_dense(), X, "cluster-weights:values=16")
    model.save(tmp_path / "m.onnx")
    with pytest.raises(EngineFailure, match=r"refuses the model.*onnxslim\.Lookup16"):
        agreement("openvino", tmp_path / "m.onnx", [{"x": X[:2]}], {}, threads=1)


@pytest.mark.skipif(find_spec("tract") is not None, reason="tract is installed")
def test_a_missing_engine_is_one_sentence(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "m.onnx"
    rewritten(conv_and_dense(), None, "simplify")[0].save(path)
    command = ("compress", path, tmp_path / "out.onnx", "--verify-with", "tract")
    assert run_command(*command) == 2
    assert "pip install 'onnxslim-compiler[tract]'" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
