"""Models in and out: nothing lost, nothing trusted, nothing half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim.errors import ModelError, UsageError
from onnxslim.graph import wire
from onnxslim.io.check import check_model
from onnxslim.io.copying import copy_file
from onnxslim.io.model import Model


def _simple(weight: np.ndarray | None = None, **kwargs: object) -> onnx.ModelProto:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4) if weight is None else weight
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8, **kwargs)


def _rich() -> onnx.ModelProto:
    """A model with everything that graph libraries like to lose."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21, "custom" : 3, "local" : 1],
         producer_name: "p", producer_version: "1", domain: "d", model_version: 7,
         doc_string: "about", metadata_props: ["k": "v"]>
        main (bool c, float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
        <float[4] unused = {1, 2, 3, 4}, float[4] outer = {1, 1, 1, 1}> {
            y = If (c) <
                then_branch = then () => (float[N, 4] t) <float[4] mine = {5, 6, 7, 8}> {
                    s = Add (x, mine)
                    t = Mul (s, outer)
                },
                else_branch = other () => (float[N, 4] t) { t = local.Twice <alpha = 2.5> (x) }
            >
            h = custom.Magic <words = ["a", "b"], none = []> (x)
            z = Add (h, outer)
        }
        <opset_import: ["" : 21], domain: "local">
        Twice <alpha> (a) => (b) { k = Constant <value_float: float = @alpha> () b = Mul (a, k) }
    """.replace(", none = []", "")
    )
    initializers = model.graph.initializer
    for name, dtype in (
        ("i4", ml_dtypes.int4), ("u4", ml_dtypes.uint4), ("bf16", ml_dtypes.bfloat16),
        ("f8", ml_dtypes.float8_e4m3fn), ("f8z", ml_dtypes.float8_e5m2fnuz),
    ):  # fmt: skip
        initializers.append(numpy_helper.from_array(np.arange(5).astype(dtype), name))
    initializers.append(numpy_helper.from_array(np.array(["a", "bc"], object), "words"))
    values = numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([1, 5], np.int64), "sparse_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    node = model.graph.node[1]
    node.doc_string, node.name = "why", "same"
    node.metadata_props.add(key="stack", value="file.py:1")
    node.attribute.append(helper.make_attribute("empty", [], attr_type=onnx.AttributeProto.INTS))
    node.attribute.append(
        helper.make_attribute("type", helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    )
    node.attribute.append(helper.make_attribute("raw", b"\xff\xfe"))
    model.graph.node[2].name = "same"
    model.graph.metadata_props.add(key="graph", value="meta")
    model.graph.quantization_annotation.add(tensor_name="y")
    model.graph.input[1].doc_string = "the input"
    model.graph.input[1].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    info = helper.make_tensor_sequence_value_info("h2", TensorProto.FLOAT, None)
    model.graph.node.append(helper.make_node("SequenceConstruct", ["z"], ["h2"]))
    model.graph.value_info.append(info)
    return model


def _normal(model: onnx.ModelProto) -> onnx.ModelProto:
    """Initializer and value_info order carry no meaning; neither does the field data lies in."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)

    def graph(proto: onnx.GraphProto) -> None:
        for tensors in (proto.initializer, proto.value_info):
            ordered = sorted(tensors, key=lambda item: item.name)
            del tensors[:]
            tensors.extend(ordered)  # type: ignore[arg-type]
        for tensor in proto.initializer:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        for node in proto.node:
            if not node.domain:
                node.ClearField("domain")  # an empty domain is the default
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    graph(attribute.g)

    graph(copy.graph)
    return copy


def _text(model: onnx.ModelProto) -> list[str]:
    return str(_normal(model)).splitlines()


@pytest.mark.parametrize("threshold", [1, 1024])
def test_everything_survives_a_round_trip(monkeypatch: pytest.MonkeyPatch, threshold: int) -> None:
    monkeypatch.setattr(wire.split, "__defaults__", (threshold,))
    source = _rich()
    again = Model.load(source).to_proto()
    assert _text(again) == _text(source)


def test_everything_survives_a_clone() -> None:
    model = Model.load(_rich())
    assert model.clone().to_bytes() == model.to_bytes()


def test_reading_the_values_of_constants_does_not_change_what_is_written() -> None:
    model = Model.load(_rich())
    before = model.to_bytes()
    for tensor in model.graph.tensors().values():
        if hasattr(tensor, "stored"):
            assert tensor.values.shape == tuple(tensor.shape)
    assert model.to_bytes() == before


def test_weights_are_read_only_views_shared_by_clones(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_simple(np.ones((64, 64), np.float32)), path)
    model = Model.load(path)
    weight = model.graph.nodes[0].inputs[1].values
    twin = model.clone().graph.nodes[0].inputs[1].values
    assert np.shares_memory(weight, twin)
    with pytest.raises(ValueError, match="read-only"):
        weight[0] = 0


def test_initializers_that_default_an_input_stay_inputs() -> None:
    source = _simple()
    source.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    model = Model.load(source)
    assert [tensor.name for tensor in model.graph.inputs] == ["x", "w"]
    assert _normal(model.to_proto()) == _normal(source)


def test_initializers_of_ir_version_3_are_constants_and_stay_listed_as_inputs() -> None:
    source = _simple()
    source.ir_version = 3
    source.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    model = Model.load(source)
    assert [tensor.name for tensor in model.graph.inputs] == ["x"]
    again = model.to_proto()
    onnx.checker.check_model(again)
    assert [value.name for value in again.graph.input] == ["x", "w"]


# ------------------------------------------------------------------------- external data


def _external(folder: Path, location: str = "m.onnx.data") -> Path:
    path = folder / "m.onnx"
    model = _simple(np.arange(4096, dtype=np.float32).reshape(64, 64))
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def _redirect(path: Path, location: str, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
        if entry.key in entries:
            entry.value = entries[entry.key]
    onnx.save(model, path)


def test_external_data_is_read_in_place_and_written_as_external_data(tmp_path: Path) -> None:
    path = _external(tmp_path)
    model = Model.load(path)
    assert model.origin.external == (tmp_path / "m.onnx.data",)
    out = tmp_path / "out.onnx"
    model.save(out)
    assert (tmp_path / "out.onnx.data").stat().st_size == 64 * 64 * 4
    again = onnx.load(out)
    expected = np.arange(4096, dtype=np.float32).reshape(64, 64)
    np.testing.assert_array_equal(numpy_helper.to_array(again.graph.initializer[0]), expected)


def test_external_data_can_be_put_into_the_file(tmp_path: Path) -> None:
    Model.load(_external(tmp_path)).save(tmp_path / "out.onnx", external=False)
    assert not (tmp_path / "out.onnx.data").exists()
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/etc/passwd", "relative path inside"),
        ("../secret", "relative path inside"),
        ("sub/../../secret", "relative path inside"),
        ("", "relative path inside"),
        ("missing.data", "are missing"),
    ],
)
def test_external_paths_that_leave_the_folder_are_refused(
    tmp_path: Path, location: str, message: str
) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 20000)
    (tmp_path / "in").mkdir()
    path = _external(tmp_path / "in")
    _redirect(path, location)
    with pytest.raises(ModelError, match=message):
        Model.load(path)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 20000)
    (tmp_path / "in").mkdir()
    path = _external(tmp_path / "in")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    _redirect(path, "link")
    with pytest.raises(ModelError, match="a link that leaves"):
        Model.load(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"length": "99999999"}, "cut off or belongs to another"),
        ({"offset": "99999999"}, "cut off or belongs to another"),
        ({"length": "100"}, "100 bytes of data"),
        ({"offset": "-4"}, "broken external offset"),
        ({"length": "many"}, "broken external offset or length"),
    ],
)
def test_external_sizes_are_checked_against_the_file(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    path = _external(tmp_path)
    _redirect(path, "m.onnx.data", **entries)
    with pytest.raises(ModelError, match=message):
        Model.load(path)


def test_external_data_needs_a_path(tmp_path: Path) -> None:
    data = _external(tmp_path).read_bytes()
    with pytest.raises(ModelError, match="loaded from its path"):
        Model.load(data)


# ------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a model at all, just text", "not an ONNX model|no ONNX model|cut off"),
        (b"\x08\x08", "no ONNX model"),
        (b"PK\x03\x04" + b"\0" * 100, "not an ONNX model|no ONNX model|cut off"),
    ],
)
def test_what_is_no_model_is_said_in_one_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        Model.load(path)


def test_every_truncation_of_a_model_is_an_error_or_an_invalid_model(tmp_path: Path) -> None:
    data = _simple(np.ones((32, 16), np.float32)).SerializeToString()
    for size in range(0, len(data), 41):
        path = tmp_path / "cut.onnx"
        path.write_bytes(data[:size])
        with pytest.raises(ModelError):
            check_model(Model.load(path))


@pytest.mark.parametrize("elements", [3, 5000])
def test_a_tensor_whose_bytes_do_not_match_its_shape_is_named(elements: int) -> None:
    model = _simple()
    model.graph.initializer[0].raw_data = b"\0" * 4 * elements
    with pytest.raises(ModelError, match=r"Tensor `w` has .* bytes of data"):
        Model.load(model)


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        Model.load(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="is a folder"):
        Model.load(tmp_path)


def test_the_checker_names_the_node() -> None:
    model = _simple()
    model.graph.node[0].op_type = "MatMull"
    with pytest.raises(ModelError, match="MatMull"):
        check_model(Model.load(model))


# ------------------------------------------------------------------------- writing


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    onnx.save(_rich(), tmp_path / "m.onnx")
    for name in ("a.onnx", "b.onnx"):
        Model.load(tmp_path / "m.onnx").save(tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_simple(), path)
    model, before = Model.load(path), path.read_bytes()
    os.link(path, tmp_path / "same.onnx")
    for target in (path, tmp_path / "same.onnx"):
        with pytest.raises(UsageError, match="is the input itself"):
            model.save(target)
    assert path.read_bytes() == before


def test_the_inputs_weights_are_never_overwritten(tmp_path: Path) -> None:
    path = _external(tmp_path, location="out.onnx.data")
    before = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(UsageError, match=r"would overwrite `out.onnx.data`"):
        Model.load(path).save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == before
    assert not (tmp_path / "out.onnx").exists()


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Model.load(_simple()).save(tmp_path / "none" / "out.onnx")


def test_a_device_is_never_replaced_by_a_file() -> None:
    with pytest.raises(UsageError, match="is a device"):
        Model.load(_simple()).save("/dev/null")


def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="disk is full"):
        Model.load(_simple()).save(target)
    assert target.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["out.onnx"]


def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Model.load(_simple()).save(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_copying_an_unchanged_model_keeps_every_byte(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = _external(tmp_path)
    copy_file(Model.load(path).origin, tmp_path / "out" / "copy.onnx")
    assert (tmp_path / "out" / "copy.onnx").read_bytes() == path.read_bytes()
    data = (tmp_path / "m.onnx.data").read_bytes()
    assert (tmp_path / "out" / "m.onnx.data").read_bytes() == data
