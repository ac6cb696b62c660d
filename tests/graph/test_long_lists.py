"""Long lists of `ai.onnx.ml` stay in the mapped file: nobody makes Python lists of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

from onnxslim.graph import wire
from onnxslim.graph.file_bytes import node_bytes
from onnxslim.graph.ir import StoredList
from onnxslim.io.check import checker_objection
from onnxslim.io.model import Model
from onnxslim.passes.dedup_nodes import DedupNodes
from onnxslim.pipeline.passes import Context
from onnxslim.runtime.session import open_session

ML = "ai.onnx.ml"
DEPTH = 13


def tree(*more: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """A full regression tree over four features, and other nodes."""
    count = 2 ** (DEPTH + 1) - 1
    ids = np.arange(count)
    leaf = ids >= 2**DEPTH - 1
    rng = np.random.default_rng(0)
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain=ML,
        n_targets=1,
        nodes_nodeids=ids.tolist(),
        nodes_treeids=[0] * count,
        nodes_featureids=rng.integers(0, 4, count).tolist(),
        nodes_modes=["LEAF" if is_leaf else "BRANCH_LEQ" for is_leaf in leaf],
        nodes_values=rng.normal(size=count).tolist(),
        nodes_truenodeids=np.where(leaf, 0, 2 * ids + 1).tolist(),
        nodes_falsenodeids=np.where(leaf, 0, 2 * ids + 2).tolist(),
        target_ids=[0] * int(leaf.sum()),
        target_nodeids=ids[leaf].tolist(),
        target_treeids=[0] * int(leaf.sum()),
        target_weights=rng.normal(size=int(leaf.sum())).tolist(),
    )
    second = onnx.NodeProto()
    second.CopyFrom(node)
    second.output[0] = "z"
    nodes = [node, second, *more] if "z" in outputs else [node, *more]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    ys = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in outputs]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)]
    graph = helper.make_graph(nodes, "g", [x], ys)
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_long_lists_leave_the_skeleton_and_come_back_as_they_were() -> None:
    source = tree()
    data = source.SerializeToString(deterministic=True)
    assert len(wire.split(memoryview(data)).skeleton) < len(data) / 4
    model = Model.load(data)
    attrs = model.graph.nodes[0].attrs
    assert isinstance(attrs["nodes_values"], StoredList)
    assert isinstance(attrs["nodes_modes"], StoredList)
    assert attrs["n_targets"] == 1
    assert model.to_bytes() == data
    assert model.clone().to_bytes() == data
    assert model.file_bytes() == len(data)
    assert node_bytes(model.graph.nodes[0]) == pytest.approx(len(data), rel=0.01)
    assert checker_objection(model) is None


def test_a_model_with_long_lists_runs_as_its_file_does() -> None:
    data = tree().SerializeToString()
    x = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    with open_session(data) as plain, open_session(Model.load(data)) as ours:
        np.testing.assert_array_equal(plain.run({"x": x})["y"], ours.run({"x": x})["y"])


def test_beside_external_weights_lists_stay_in_the_model(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1000], np.ones(1000, np.float32))
    source = tree(helper.make_node("MatMul", ["y", "w"], ["m"]), outputs=("y", "m"))
    source.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 1000
    source.graph.initializer.append(weight)
    Model.load(source).save(tmp_path / "m.onnx", external=True)
    assert (tmp_path / "m.onnx.data").stat().st_size == 4000
    assert onnx.load(tmp_path / "m.onnx").graph.node == source.graph.node


def test_equal_lists_are_told_from_others() -> None:
    source = tree(helper.make_node("Add", ["y", "z"], ["s"]), outputs=("z", "s"))
    del source.graph.output[0]
    model = Model.load(source)
    result = DedupNodes().run(model.graph, Context(model=model))
    assert result.changed
    assert [node.op for node in model.graph.nodes] == ["TreeEnsembleRegressor", "Add"]
    values = next(a for a in source.graph.node[1].attribute if a.name == "nodes_values")
    values.floats[5] = 0.25
    model = Model.load(source)
    assert not DedupNodes().run(model.graph, Context(model=model)).changed


@pytest.mark.parametrize("name", ["cats_int64s", "classlabels_int64s", "int64_vocabulary", "other"])
def test_lists_that_say_how_large_an_output_is_stay(name: str) -> None:
    node = helper.make_node("Any", ["x"], ["y"], domain=ML, **{name: list(range(9000))})
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    parts = wire.split(memoryview(model.SerializeToString()))
    assert parts.tensors == (1 if name == "other" else 0)


@pytest.mark.parametrize("domain", ["", "com.example"])
def test_lists_of_other_domains_stay(domain: str) -> None:
    node = helper.make_node("Any", ["x"], ["y"], domain=domain, ints=list(range(9000)))
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    assert wire.split(memoryview(model.SerializeToString())).tensors == 0


def test_an_attribute_written_in_another_order_stays_readable() -> None:
    entries = AttributeProto(ints=range(9000)).SerializeToString()
    head = AttributeProto(name="nodes_nodeids").SerializeToString()
    kind = AttributeProto(type=AttributeProto.INTS).SerializeToString()
    node = helper.make_node("Any", ["x"], ["y"], domain=ML)
    for attribute in (kind + head + entries, entries + head + kind, head + kind + entries):
        head_bytes = b"\x2a" + wire._encode_varint(len(attribute))
        data = node.SerializeToString() + head_bytes + attribute
        data = b"\x0a" + wire._encode_varint(len(data)) + data
        data = b"\x3a" + wire._encode_varint(len(data)) + data
        assert wire.split(memoryview(data)).skeleton == data


def test_tensors_are_located_past_long_lists() -> None:
    source = tree()
    source.graph.initializer.append(
        helper.make_tensor("w", TensorProto.FLOAT, [1000], np.ones(1000, np.float32))
    )
    found = list(wire.locate(memoryview(source.SerializeToString()), 1024))
    assert [item.name for item in found] == ["w"]
