"""Splitting a serialized model from its weights and joining it again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxslim.errors import ModelError
from onnxslim.graph import wire


def _model(arrays: list[np.ndarray], *, nested: bool = False) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(arrays)]
    constant = helper.make_node("Constant", [], ["c"], value=tensors[0] if tensors else None)
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["d"], value=tensors[-1])] if tensors else [],
        "body",
        [],
        [],
        tensors,
    )
    nodes = [constant] if tensors else []
    if nested:
        nodes.append(helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body))
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    return helper.make_model(graph, doc_string="d" * 3000)


def _payloads(data: bytes, skeleton: bytes) -> tuple[bytes, list[wire.Payload]]:
    """Turn file offsets of placeholders into payload indices, as the exporter does."""
    model = onnx.ModelProto.FromString(skeleton)
    payloads: list[wire.Payload] = []
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        entries = wire.external_entries(tensor)
        if entries.get("location") == wire.PLACEHOLDER:
            start, size = int(entries["offset"]), int(entries["length"])
            wire.placeholder(tensor, len(payloads), size)
            payloads.append(wire.Payload(size, lambda s=start, n=size: data[s : s + n]))
    return model.SerializeToString(), payloads


arrays = st.lists(
    st.tuples(st.sampled_from(["f4", "i8", "u1", "f8"]), st.integers(0, 600)), max_size=4
).map(lambda specs: [np.arange(n, dtype=dtype) for dtype, n in specs])


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=60)
@given(arrays, st.booleans(), st.sampled_from([1, 16, 1024]))
def test_split_then_join_gives_an_equal_model(
    weights: list[np.ndarray], nested: bool, threshold: int
) -> None:
    model = _model(weights, nested=nested)
    data = model.SerializeToString()
    parts = wire.split(memoryview(data), threshold)
    skeleton, payloads = _payloads(data, parts.skeleton)
    chunks, total = wire.join(skeleton, payloads)
    joined = b"".join(chunks)
    assert len(joined) == total
    assert onnx.ModelProto.FromString(joined) == model


def test_large_weights_leave_the_skeleton() -> None:
    data = _model([np.zeros(100_000, np.float32)]).SerializeToString()
    parts = wire.split(memoryview(data))
    assert parts.tensors == 2  # the initializer, and the Constant node's value
    assert len(parts.skeleton) < 5000


def test_packed_float_data_is_split_like_raw_data() -> None:
    tensor = helper.make_tensor("w", onnx.TensorProto.FLOAT, [1000], np.arange(1000.0), raw=False)
    data = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    parts = wire.split(memoryview(data))
    assert parts.tensors == 1
    chunks, _ = wire.join(*_payloads(data, parts.skeleton))
    joined = onnx.ModelProto.FromString(b"".join(chunks))
    array = numpy_helper.to_array(joined.graph.initializer[0])
    np.testing.assert_array_equal(array, np.arange(1000, dtype=np.float32))


@pytest.mark.parametrize("cut", [1, 10, 100, 1000, 5000])
def test_a_cut_off_file_is_an_error_and_never_a_wrong_weight(cut: int) -> None:
    data = _model([np.arange(4000, dtype=np.float32)]).SerializeToString()[:-cut]
    with pytest.raises(ModelError, match=r"cut off|not an ONNX model"):
        wire.split(memoryview(data))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_never_crash_the_splitter(data: bytes) -> None:
    try:
        wire.split(memoryview(data), threshold=1)
    except ModelError:
        return


def test_a_length_beyond_the_file_is_refused_before_it_is_read() -> None:
    data = b"\x3a" + b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"  # graph of 2^63 bytes
    with pytest.raises(ModelError, match="cut off"):
        wire.split(memoryview(data))


def test_graphs_nested_without_end_are_refused() -> None:
    data = b""
    for _ in range(200):
        data = b"\x32" + wire._encode_varint(len(data)) + data  # AttributeProto.g
        data = b"\x2a" + wire._encode_varint(len(data)) + data  # NodeProto.attribute
        data = b"\x0a" + wire._encode_varint(len(data)) + data  # GraphProto.node
    data = b"\x3a" + wire._encode_varint(len(data)) + data
    with pytest.raises(ModelError, match="deep"):
        wire.split(memoryview(data), threshold=0)


@given(st.integers(0, 2**63 - 1))
def test_a_varint_takes_the_bytes_that_it_is_written_in(number: int) -> None:
    assert wire.varint_bytes(number) == len(wire._encode_varint(number))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=300),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.booleans(),
)
def test_the_size_of_an_initializer_is_what_protobuf_says(
    name: str, shape: list[int], is_input: bool
) -> None:
    array = np.zeros(shape, np.float32)
    graph = onnx.GraphProto()
    graph.initializer.append(numpy_helper.from_array(array, name))
    if is_input:
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    size = wire.initializer_bytes(name, shape, array.nbytes, is_input=is_input)
    assert size == graph.ByteSize()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=60, max_size=300),
    st.booleans(),
    st.integers(8, 400),
)
def test_lists_of_numbers_are_passed_over_without_a_look_at_each(
    values: list[int], has_floats: bool, window: int
) -> None:
    attribute = helper.make_attribute("a", values)
    if has_floats:
        attribute.floats.extend([1.0] * 70)
    attribute.t.CopyFrom(numpy_helper.from_array(np.zeros(3, "f4"), "t"))
    data = memoryview(attribute.SerializeToString())
    all_fields = list(wire.fields_of(data, 0, len(data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_WINDOW", window)
        found = list(wire._contents(data, 0, len(data)))
    assert found == [field for field in all_fields if field[1] == 2]


def test_a_list_that_breaks_off_is_refused() -> None:
    data = helper.make_attribute("a", list(range(1000))).SerializeToString()
    cut = data[: data.index(b"\x40\xf4\x03") + 2]  # within the entry 500
    with pytest.raises(ModelError, match="cut off"):
        list(wire._contents(memoryview(cut), 0, len(cut)))
