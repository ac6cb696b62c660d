"""Long chains of nodes of several kinds, and a model above 2 GB, for `scaling.py`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
CHANNELS = 8
LARGE_SIDE = 8_000  # a square float32 weight of 256 MB
LARGE_LAYERS = 10

Weights = dict[str, NDArray[np.generic]]
Chain = tuple[list[onnx.NodeProto], Weights]


def build(kind: str, length: int) -> onnx.ModelProto:
    """Return a chain of `length` nodes of one of `KINDS`."""
    nodes, weights = KINDS[kind](length)
    shape = (1, CHANNELS, 4, 4)
    last = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return _model(graph)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _chain(steps: Sequence[tuple[str, tuple[str, ...]]]) -> list[onnx.NodeProto]:
    """Return one node per (operator, further inputs), each fed by the one before."""
    return [
        helper.make_node(op, [f"t{index}" if index else "x", *others], [f"t{index + 1}"])
        for index, (op, others) in enumerate(steps)
    ]


def _additions(length: int) -> Chain:
    """Sum x + w0 + w1 + ...: every node has a constant of its own."""
    generator = np.random.default_rng(0)
    weights: Weights = {
        f"w{index}": generator.standard_normal((CHANNELS, 1, 1), dtype=np.float32)
        for index in range(length)
    }
    return _chain([("Add", (name,)) for name in weights]), weights


def _input_additions(length: int) -> Chain:
    """Sum x + x + x + ...: nothing in it is constant."""
    return _chain([("Add", ("x",))] * length), {}


def _shared_scalar(length: int) -> Chain:
    """Abs and Sub in turns, every Sub with the same scalar initializer."""
    steps = [("Sub", ("one",)) if index % 2 else ("Abs", ()) for index in range(length)]
    weights: Weights = {"one": np.array(1, np.float32)}
    return _chain(steps), weights


def _conv_blocks(length: int) -> Chain:
    """Conv, BatchNormalization, Relu, over and over, each with weights of its own."""
    generator = np.random.default_rng(0)
    weights: Weights = {}
    steps: list[tuple[str, tuple[str, ...]]] = []
    for index in range(length):
        op = ("Conv", "BatchNormalization", "Relu")[index % 3]
        values = _block_weights(op, generator)
        names = tuple(f"w{index}_{number}" for number in range(len(values)))
        weights.update(zip(names, values, strict=True))
        steps.append((op, names))
    return _chain(steps), weights


def _block_weights(op: str, generator: np.random.Generator) -> list[NDArray[np.float32]]:
    """Return weights near the identity's, so that ten thousand nodes neither explode nor vanish."""
    noise = generator.uniform(-1e-3, 1e-3, (4, CHANNELS)).astype(np.float32)
    one, zero = np.float32(1), np.float32(0)
    match op:
        case "Conv":
            kernel = np.eye(CHANNELS, dtype=np.float32) + noise[0]
            return [kernel.reshape(CHANNELS, CHANNELS, 1, 1)]  # (C_out, C_in, kH, kW)
        case "BatchNormalization":
            return [row + base for row, base in zip(noise, (one, zero, zero, one), strict=True)]
    return []


def _data_movement(length: int) -> Chain:
    """Reshape and Transpose in turns: none undoes its neighbour, runs of them do."""
    shapes: Weights = {
        "wide": np.array([1, CHANNELS, 4, 4], np.int64),
        "flat": np.array([1, 1, CHANNELS * 4, 4], np.int64),
    }
    turns = (("Reshape", ("flat",)), ("Transpose", ()), ("Reshape", ("wide",)), ("Transpose", ()))
    nodes = _chain([turns[index % len(turns)] for index in range(length)])
    for node in nodes:
        if node.op_type == "Transpose":
            node.attribute.append(helper.make_attribute("perm", (0, 2, 1, 3)))
    return nodes, shapes


def _shape_arithmetic(length: int) -> Chain:
    """Shape, Gather, Unsqueeze, Concat, Reshape, over and over: known after shape inference."""
    nodes: list[onnx.NodeProto] = []
    value = "x"
    for block in range(length // 5):
        name = f"b{block}_"
        nodes += [
            helper.make_node("Shape", [value], [name + "shape"]),
            helper.make_node("Gather", [name + "shape", "first"], [name + "size"]),
            helper.make_node("Unsqueeze", [name + "size", "axes"], [name + "sizes"]),
            helper.make_node("Concat", [name + "sizes", "rest"], [name + "to"], axis=0),
            helper.make_node("Reshape", [value, name + "to"], [name + "out"]),
        ]
        value = name + "out"
    weights: Weights = {
        "first": np.array(0, np.int64),
        "axes": np.array([0], np.int64),
        "rest": np.array([CHANNELS, 4, 4], np.int64),
    }
    return nodes, weights


KINDS: dict[str, Callable[[int], Chain]] = {
    "additions": _additions,
    "input-additions": _input_additions,
    "shared-scalar": _shared_scalar,
    "conv-blocks": _conv_blocks,
    "data-movement": _data_movement,
    "shape-arithmetic": _shape_arithmetic,
}


def write_large(file: Path) -> int:
    """Write a model of ten 256 MB weights, external data beside it; return the bytes of both.

    It is left alone when it is there: the graph is written last.
    """
    data = file.with_suffix(".data")
    if file.exists():
        return file.stat().st_size + data.stat().st_size
    file.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    weights = []
    with data.open("wb") as stream:
        for index in range(LARGE_LAYERS):
            offset = stream.tell()
            values = generator.standard_normal((LARGE_SIDE, LARGE_SIDE), dtype=np.float32)
            values *= np.float32(LARGE_SIDE**-0.5)
            stream.write(values.data)
            weights.append(_external(f"w{index}", data.name, offset, stream.tell() - offset))
    steps: list[tuple[str, tuple[str, ...]]] = []
    for weight in weights:
        steps += [("MatMul", (weight.name,)), ("Identity", ()), ("Relu", ())]
    nodes = _chain(steps)
    shape = (1, LARGE_SIDE)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name in ("x", nodes[-1].output[0])
    ]
    onnx.save(_model(helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)), file)
    return file.stat().st_size + data.stat().st_size


def _external(name: str, location: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(LARGE_SIDE, LARGE_SIDE))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
