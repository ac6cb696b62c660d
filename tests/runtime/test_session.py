from __future__ import annotations

import gc
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxslim.errors import RuntimeFailure
from onnxslim.graph import wire
from onnxslim.io.model import Model
from onnxslim.runtime import session as session_module
from onnxslim.runtime.session import TensorInfo, open_session
from support import parse

DENSE = """<opset_import: ["" : 17]>
g (float[N, 64] x) => (float[N, 32] y) { y = MatMul (x, w) }"""


def dense_model(rows: int = 64) -> tuple[onnx.ModelProto, np.ndarray]:
    """A model with one weight that is large enough to become a placeholder."""
    weight = np.random.default_rng(0).standard_normal((rows, 32)).astype(np.float32)
    proto = onnx.parser.parse_model(DENSE.replace("<opset", "<ir_version: 8, opset", 1))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return proto, weight


def test_weights_reach_onnxruntime_without_being_serialized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proto, weight = dense_model()
    sizes: list[int] = []
    real = session_module.ort.InferenceSession

    def spy(content: bytes, *args: object, **kwargs: object) -> object:
        sizes.append(len(content))
        return real(content, *args, **kwargs)

    monkeypatch.setattr(session_module.ort, "InferenceSession", spy)
    x = np.ones((3, 64), np.float32)
    with open_session(Model.load(proto)) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ weight, rtol=1e-5, atol=1e-5)
    assert sizes[0] < weight.nbytes


@pytest.mark.parametrize("optimise", [True, False])
def test_path_bytes_and_model_give_the_same(tmp_path: Path, optimise: bool) -> None:
    proto, _ = dense_model()
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    feeds = {"x": np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)}
    results = []
    for source in (path, path.read_bytes(), Model.load(path)):
        with open_session(source, optimise=optimise, threads=1) as session:
            results.append(session.run(feeds)["y"])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_new_arrays_of_a_pass_are_used_and_survive_their_owner() -> None:
    proto, _ = dense_model()
    model = Model.load(proto)
    constant = model.graph.nodes[0].inputs[1]
    constant.values = np.full((64, 32), 2.0, np.float32)
    session = open_session(model)
    del model, constant
    out = session.run({"x": np.ones((1, 64), np.float32)})["y"]
    np.testing.assert_array_equal(out, np.full((1, 32), 128.0, np.float32))


def test_closing_lets_go_of_the_weights() -> None:
    proto, _ = dense_model()
    model = Model.load(proto)
    constant = model.graph.nodes[0].inputs[1]
    array = np.zeros((64, 32), np.float32)
    constant.values = array
    session = open_session(model)
    held = weakref.ref(array)
    del array, model, constant
    session.close()
    gc.collect()  # graphs are cyclic
    assert held() is None
    with pytest.raises(RuntimeError, match="closed"):
        session.run({})


def test_large_tensors_in_bodies_and_attributes_are_embedded() -> None:
    inner, value = ", ".join(map(str, range(400))), ", ".join(["1"] * 300)
    proto = parse(
        f"""<opset_import: ["" : 17]>
        g (bool c, float[1] x) => (float[400] y, float[300] z) {{
            z = Constant <value = float[300] {{{value}}}> ()
            y = If (c) <
                then_branch = t () => (float[400] a) <float[400] k = {{{inner}}}> {{
                    a = Add (x, k)
                }},
                else_branch = e () => (float[400] b) <int64[1] s = {{400}}> {{
                    b = Expand (x, s)
                }}
            >
        }}"""
    )
    model = Model.load(proto)
    skeleton, payloads = model.skeleton()
    assert len(payloads) == 2
    assert not skeleton.graph.initializer
    with open_session(model) as session:
        feeds = {"c": np.array(True), "x": np.array([1], np.float32)}
        np.testing.assert_array_equal(session.run(feeds)["y"], 1 + np.arange(400, dtype=np.float32))


def test_local_functions_with_large_tensors_run() -> None:
    proto = parse(
        """<opset_import: ["" : 17, "local" : 1]>
        g (float[300] x) => (float[300] y) {{ y = local.shift (x) }}
        <domain: "local", opset_import: ["" : 17]>
        shift (a) => (b) {{
            k = Constant <value = float[300] {{{}}}> ()
            b = Add (a, k)
        }}""".format(", ".join(["3"] * 300))
    )
    with open_session(Model.load(proto)) as session:
        out = session.run({"x": np.ones(300, np.float32)})["y"]
    np.testing.assert_array_equal(out, np.full(300, 4, np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "uint8", "int8", "bool"])
def test_initializers_of_every_numpy_type_are_shared(dtype: str) -> None:
    values = np.arange(2048).reshape(1, 2048).astype(dtype)
    proto = parse(
        """<opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Identity (x) }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    proto.graph.node.append(onnx.NodeProto(op_type="Identity", input=["w"], output=["z"]))
    info = onnx.helper.make_tensor_value_info(
        "z", onnx.helper.np_dtype_to_tensor_dtype(values.dtype), values.shape
    )
    proto.graph.output.append(info)
    with open_session(Model.load(proto)) as session:
        out = session.run({"x": np.zeros(1, np.float32)})["z"]
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("kind", [onnx.TensorProto.INT4, onnx.TensorProto.UINT4])
def test_packed_initializers_are_embedded(kind: int) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float s) => (float[4096] y) { y = DequantizeLinear (w, s) }"""
    )
    raw = onnx.TensorProto(name="w", data_type=kind, dims=[4096], raw_data=b"\x21" * 2048)
    proto.graph.initializer.append(raw)
    with open_session(Model.load(proto)) as session:
        out = session.run({"s": np.array(2, np.float32)})["y"]
    np.testing.assert_array_equal(out[:4], np.array([2, 4, 2, 4], np.float32))


def test_bfloat16_weights_inputs_and_outputs_work() -> None:
    values = np.arange(1024).astype(ml_dtypes.bfloat16)
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 19]>
        g (bfloat16[N] x) => (bfloat16[N] y, bfloat16[1024] z) {
            y = Identity (x)
            z = Identity (w)
        }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    with open_session(Model.load(proto)) as session:
        assert session.inputs[0].dtype == ml_dtypes.bfloat16
        out = session.run({"x": values[:3]})
    assert out["y"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(out["y"], values[:3])
    np.testing.assert_array_equal(out["z"], values)


def test_initializers_that_are_also_inputs_stay_overridable_or_constant() -> None:
    for ir_version in (3, 8):
        proto, weight = dense_model()
        proto.ir_version = ir_version
        proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, weight.shape))
        with open_session(Model.load(proto)) as session:
            assert [info.name for info in session.inputs] == ["x"]
            out = session.run({"x": np.ones((1, 64), np.float32)})["y"]
        np.testing.assert_allclose(out[0], weight.sum(axis=0), rtol=1e-4, atol=1e-4)


def test_model_above_the_protobuf_limit_goes_through_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "PROTOBUF_LIMIT", 100)
    proto, weight = dense_model()
    with open_session(Model.load(proto)) as session:
        out = session.run({"x": np.ones((1, 64), np.float32)})["y"]
    np.testing.assert_allclose(out[0], weight.sum(axis=0), rtol=1e-4, atol=1e-4)


def test_metadata_keeps_symbols_and_tells_scalars_from_unknown_ranks() -> None:
    proto = parse(
        """<opset_import: ["" : 17]>
        g (float s, float[N, ?, 3] d, string[N] t) => (float u, float[N, ?, 3] e, string[N] v) {
            u = Identity (s) e = Identity (d) v = Identity (t)
        }"""
    )
    proto.graph.input.append(onnx.helper.make_tensor_value_info("r", 1, None))
    with open_session(Model.load(proto)) as session:
        assert session.inputs == (
            TensorInfo("s", "tensor(float)", np.dtype(np.float32), ()),
            TensorInfo("d", "tensor(float)", np.dtype(np.float32), ("N", None, 3)),
            TensorInfo("t", "tensor(string)", np.dtype(object), ("N",)),
            TensorInfo("r", "tensor(float)", np.dtype(np.float32), None),
        )
        assert [info.name for info in session.outputs] == ["u", "e", "v"]


def test_strings_go_in_and_out() -> None:
    proto = parse(
        """<opset_import: ["" : 17]> g (string[N] x) => (string[N] y) { y = Identity (x) }"""
    )
    with open_session(Model.load(proto)) as session:
        out = session.run({"x": np.array(["a", "ü"], object)})["y"]
    assert out.tolist() == ["a", "ü"]


FAULTS = {
    "unknown operator": ("y = Nonsense (x)", "Nonsense"),
    "unknown domain": ("y = far.Away (x)", "far"),
    "wrong type": ("k = Constant <value = double[1] {1}> () y = Add (x, k)", "Type"),
}


@pytest.mark.parametrize(("node", "word"), FAULTS.values(), ids=FAULTS)
def test_refused_model_is_one_readable_sentence(
    node: str, word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "far" : 1]>
        g (float[N] x) => (float[N] y) {{ {node} }}"""
    )
    with pytest.raises(RuntimeFailure, match=word) as caught:
        open_session(Model.load(proto))
    text = str(caught.value)
    assert text.startswith("onnxruntime cannot load the model: ")
    assert "ONNXRuntimeError" not in text
    assert "\n" not in text
    assert ".cc:" not in text
    assert capfd.readouterr() == ("", "")


def test_failing_run_names_the_node_and_stays_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    proto, _ = dense_model()
    proto.graph.node[0].name = "head"
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "M"
    with open_session(Model.load(proto)) as session:
        with pytest.raises(RuntimeFailure, match=r"node `head` \(MatMul\)"):
            session.run({"x": np.zeros((1, 5), np.float32)})
        with pytest.raises(RuntimeFailure, match="missing"):
            session.run({})
        with pytest.raises(RuntimeFailure, match="data type"):
            session.run({"x": np.zeros((1, 64), np.float64)})
    assert capfd.readouterr() == ("", "")


def test_garbage_and_missing_files_are_runtime_failures(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure):
        open_session(b"no model")
    with pytest.raises(RuntimeFailure, match="exist"):
        open_session(tmp_path / "missing.onnx")


def test_placeholder_of_this_process_is_what_skeletons_carry() -> None:
    proto, _ = dense_model()
    skeleton, _ = Model.load(proto).skeleton()
    entries = wire.external_entries(skeleton.graph.initializer[0])
    assert entries["location"] == wire.PLACEHOLDER


def test_a_weight_gives_the_same_bits_whether_it_is_computed_or_constant() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((384, 512)).astype(np.float32)
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 384] x) => (float[N, 512] y) {
        %s
        y = Gemm (x, w)
    }"""
    results = []
    for line, name in (("w = Identity (v)", "v"), ("", "w")):
        proto = onnx.parser.parse_model(text % line)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        with open_session(Model.load(proto), optimise=False) as session:
            feeds = {"x": np.random.default_rng(1).standard_normal((9, 384)).astype(np.float32)}
            results.append(session.run(feeds)["y"])
    np.testing.assert_array_equal(*results)


def test_a_large_initializer_that_nothing_uses_is_no_obstacle() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }""")
    unused = onnx.numpy_helper.from_array(np.zeros(5000, np.float32), "spare")
    proto.graph.initializer.append(unused)
    with open_session(Model.load(proto)) as session:
        assert session.run({"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 4)
