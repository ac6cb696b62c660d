"""What hostile files may take: a few of the cases that `tests/hostile.py` tries."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

sys.path.append(str(Path(__file__).parents[1]))

from hostile import try_case

from onnxslim.errors import ModelError, RunStopped
from onnxslim.io.model import Model
from onnxslim.io.proto_bounds import HIDDEN, check_lists, hide_unfollowed
from onnxslim.runtime.session import open_session


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "Range to computed terabytes",
        "functions that double 40 times",
        "functions that double 40 times, for groups",
        "functions that double 40 times, for exits",
        "a pickle in an .npz",
    ],
)
def test_a_hostile_file_is_refused_in_bounded_time_and_memory(name: str) -> None:
    outcome = try_case(name)
    assert outcome.wrong == ()
    assert outcome.code in (2, 3)


def endless() -> Model:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)],
        "g",
        [
            helper.make_tensor_value_info("turns", TensorProto.INT64, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    imports = [helper.make_opsetid("", 17)]
    return Model.load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def test_a_run_that_takes_too_long_is_stopped_and_the_session_stays_usable() -> None:
    with open_session(endless(), threads=1) as session:
        feeds = {"turns": np.int64(1 << 62)[None].reshape(()), "x": np.ones(1, np.float32)}
        with pytest.raises(RunStopped, match="and was stopped"):
            session.run(feeds, 0.05)
        feeds["turns"] = np.array(3, np.int64)
        assert session.run(feeds, 60)["y"] == -1


def test_a_list_that_no_operator_reads_is_refused_by_name() -> None:
    long = list(range((1 << 20) + 1))
    with pytest.raises(ModelError, match=r"`perm` of node `y` \(Transpose\) has 1,048,577"):
        check_lists([helper.make_node("Transpose", ["x"], ["y"], perm=long)])
    check_lists([helper.make_node("Constant", [], ["y"], value_ints=long)])


def test_only_nodes_whose_values_inference_cannot_know_are_hidden() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Range", ["zero", "n", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    constants = [onnx.numpy_helper.from_array(np.int64(i), n) for i, n in ((0, "zero"), (1, "one"))]
    graph = helper.make_graph(nodes, "g", [], [], constants)
    assert hide_unfollowed(graph)
    assert [node.op_type for node in graph.node if node.domain == HIDDEN] == ["Cast"]
