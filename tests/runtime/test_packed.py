"""A session straight from a packed file."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim import runtime
from onnxslim.codebook.lookup import replace_constant
from onnxslim.codebook.weight import CodebookWeight, Stage
from onnxslim.errors import ModelError, RuntimeFailure, UsageError
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.tools.pack import pack
from support import random_feeds


def matmul(weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def packed(folder: Path, model: Model) -> Path:
    model.save(folder / "m.onnx")
    pack(folder / "m.onnx", folder / "m.onnxz", measure=False)
    return folder / "m.onnxz"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", "codebook"])
def test_a_packed_model_runs_as_the_model_does(tmp_path: Path, form: str) -> None:
    codes = np.random.default_rng(0).integers(0, 7, (300, 200)).astype(np.uint8)
    values = np.linspace(-1, 1, 7).astype(np.float32)
    proto = matmul(values[codes])
    model = Model.load(proto)
    if form == "codebook":
        rewriter = Rewriter(model.graph)
        (holder,) = (t for n in model.graph.nodes for t in n.inputs if t.name == "w")
        stage = Stage(codes.reshape(1, -1), values)
        replace_constant(
            rewriter, holder, CodebookWeight((stage,), codes.shape, np.dtype("f4")), "codes"
        )
        rewriter.result()
    session = runtime.load(packed(tmp_path, model))
    gc.collect()  # the session alone keeps the weights
    assert isinstance(session, ort.InferenceSession)
    feeds = random_feeds(proto)
    plain = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, feeds)[0], plain.run(None, feeds)[0])


def test_options_and_providers_are_those_given(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    path = packed(tmp_path, Model.load(matmul(np.ones((64, 64), np.float32))))
    session = runtime.load(path, options, ["CPUExecutionProvider"])
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_an_onnx_file_is_loaded_too(tmp_path: Path) -> None:
    packed(tmp_path, Model.load(matmul(np.ones((64, 64), np.float32))))
    session = runtime.load(tmp_path / "m.onnx")
    assert session.run(None, {"x": np.ones((1, 64), np.float32)})[0].tolist() == [[64.0] * 64]


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    path = packed(tmp_path, Model.load(matmul(np.ones((64, 64), np.float32))))
    with pytest.raises(UsageError, match="There is no file"):
        runtime.load(tmp_path / "none.onnxz")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match="cannot be used"):
        runtime.load(path)
    unknown = matmul(np.ones((64, 64), np.float32))
    unknown.graph.node[0].domain = "nobody"
    unknown.opset_import.append(helper.make_opsetid("nobody", 1))
    with pytest.raises(RuntimeFailure, match="cannot load"):
        runtime.load(packed(tmp_path, Model.load(unknown)))


def test_importing_the_package_loads_no_onnxruntime() -> None:
    code = "import sys, onnxslim.runtime; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute `nope`"):
        _ = runtime.nope
