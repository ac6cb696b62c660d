"""One small trained-looking net in the forms in which exporters write it, unsimplified.

Every form but `tied` computes what the plain net computes, up to rounding where weights are stored
in fewer bits, and its layers keep the names of their outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import onnx
from layer_nets import net, node, normal
from onnx import helper, numpy_helper

Form = Callable[[onnx.ModelProto], None]

_LINEAR: Final = ("Conv", "MatMul", "Gemm")


def plain_net(opset: int) -> onnx.ModelProto:
    """Conv, BatchNormalization, Conv, MatMul and Gemm, 15 kB of weights."""
    weights = {
        "w0": normal(8, 3, 3, 3, scale=0.3),
        "b0": normal(8, seed=2, scale=0.1),
        "s": 1 + normal(8, seed=3, scale=0.1),
        "t": normal(8, seed=4, scale=0.1),
        "mean": normal(8, seed=5, scale=0.1),
        "var": 1 + np.abs(normal(8, seed=6)),
        "w1": low_rank(16, 8 * 9, seed=7).reshape(16, 8, 3, 3),
        "w2": low_rank(16, 48, seed=8),
        "w3": low_rank(48, 32, seed=9),
        "b3": normal(32, seed=10, scale=0.1),
    }
    nodes = [
        node("Conv", ["x", "w0", "b0"], "c0", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c0", "s", "t", "mean", "var"], "n0"),
        node("Relu", ["n0"], "r0"),
        node("Conv", ["r0", "w1"], "c1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], "r1"),
        node("GlobalAveragePool", ["r1"], "p"),
        node("Flatten", ["p"], "f"),
        node("MatMul", ["f", "w2"], "m"),
        node("Relu", ["m"], "r2"),
        node("Gemm", ["r2", "w3", "b3"], "g"),
        node("Relu", ["g"], "y"),
    ]
    return net(nodes, weights, ["N", 3, 5, 5], opset=opset)


def low_rank(rows: int, columns: int, seed: int) -> np.ndarray:
    """A matrix of rank 4 and a little noise, as trained ones are."""
    product = normal(rows, 4, seed=seed) @ normal(4, columns, seed=seed + 20)
    noise = normal(rows, columns, seed=seed + 40, scale=0.05)
    return np.asarray(0.1 * (product + noise), np.float32)


def written(form: str) -> onnx.ModelProto:
    """The net in one of `FORMS`."""
    opset, ir_version, rewrite = FORMS[form]
    model = plain_net(opset)
    model.ir_version = ir_version
    del model.graph.value_info[:]
    if rewrite is not None:
        rewrite(model)
    onnx.checker.check_model(model, full_check=True)
    return model


# ------------------------------------------------------------------- where weights lie


def _weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in list(model.graph.initializer) if len(tensor.dims) > 1)


def _behind(
    model: onnx.ModelProto,
    stored: Callable[[np.ndarray], np.ndarray],
    *steps: Callable[[np.ndarray, str, str], list[onnx.NodeProto]],
) -> None:
    """Store each weight w as `stored(w)`, and let nodes of `steps` make w of it."""
    made: list[onnx.NodeProto] = []
    for tensor in _weights(model):
        name, array = tensor.name, numpy_helper.to_array(tensor)
        last = f"{name}_stored"
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(stored(array)), last))
        for number, step in enumerate(steps, 1):
            result = name if number == len(steps) else f"{name}_{number}"
            made += step(array, last, result)
            last = result
    _prepend(model, made)


def _prepend(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    after = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *after])


def _identity(_: np.ndarray, source: str, result: str) -> list[onnx.NodeProto]:
    return [node("Identity", [source], result)]


def _transpose(array: np.ndarray, source: str, result: str) -> list[onnx.NodeProto]:
    return [node("Transpose", [source], result, perm=list(range(array.ndim))[::-1])]


def _cast(_: np.ndarray, source: str, result: str) -> list[onnx.NodeProto]:
    return [node("Cast", [source], result, to=onnx.TensorProto.FLOAT)]


def _reshape(array: np.ndarray, source: str, result: str) -> list[onnx.NodeProto]:
    shape = numpy_helper.from_array(np.array([*array.shape[:-1], -1], np.int64))
    return [
        helper.make_node("Constant", [], [f"{result}_shape"], value=shape),
        node("Reshape", [source, f"{result}_shape"], result),
    ]


def _squeeze(_: np.ndarray, source: str, result: str) -> list[onnx.NodeProto]:
    axes = numpy_helper.from_array(np.array([0], np.int64))
    return [
        helper.make_node("Constant", [], [f"{result}_axes"], value=axes),
        node("Squeeze", [source, f"{result}_axes"], result),
    ]


def _through_qdq(array: np.ndarray, source: str, result: str) -> list[onnx.NodeProto]:
    scale = numpy_helper.from_array(np.array(np.abs(array).max() / 127, np.float32))
    zero = numpy_helper.from_array(np.array(0, np.int8))
    names = [f"{result}_scale", f"{result}_zero"]
    return [
        *(
            helper.make_node("Constant", [], [name], value=value)
            for name, value in zip(names, (scale, zero), strict=True)
        ),
        node("QuantizeLinear", [source, *names], f"{result}_codes"),
        node("DequantizeLinear", [f"{result}_codes", *names], result),
    ]


def _halved(_: np.ndarray, source: str, result: str) -> list[onnx.NodeProto]:
    half = numpy_helper.from_array(np.array(0.5, np.float32))
    return [
        helper.make_node("Constant", [], [f"{result}_half"], value=half),
        node("Mul", [source, f"{result}_half"], result),
    ]


def _in_constant_nodes(model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    _prepend(model, [helper.make_node("Constant", [], [item.name], value=item) for item in tensors])


def _as_inputs(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(info)


# ------------------------------------------------------------------- around layers


def _with_twins(*, behind: str | None = None) -> Form:
    """Let two layers share each weight, the second one behind an operator where one is named."""

    def rewrite(model: onnx.ModelProto) -> None:
        rebuilt: list[onnx.NodeProto] = []
        for item in model.graph.node:
            if item.op_type not in _LINEAR:
                rebuilt.append(item)
                continue
            result, weight = item.output[0], item.input[1]
            twin = onnx.NodeProto()
            twin.CopyFrom(item)
            twin.output[0] = f"{result}_twin"
            if behind is not None:
                rebuilt.append(node(behind, [weight], f"{weight}_again"))
                twin.input[1] = f"{weight}_again"
            item.output[0] = f"{result}_own"
            rebuilt += [item, twin, node("Mean", [f"{result}_own", f"{result}_twin"], result)]
        del model.graph.node[:]
        model.graph.node.extend(rebuilt)

    return rewrite


def _tied(model: onnx.ModelProto) -> None:
    """Let the weight of the Gemm be read as it is, and transposed: two products, one matrix."""
    (gemm,) = (item for item in model.graph.node if item.op_type == "Gemm")
    at = list(model.graph.node).index(gemm)
    model.graph.node.insert(at + 1, node("Transpose", ["w3"], "w3_t", perm=[1, 0]))
    model.graph.node.insert(at + 2, node("MatMul", ["g", "w3_t"], "back"))
    model.graph.node.insert(at + 3, node("MatMul", ["back", "w3"], "again"))
    model.graph.node[-1].input[0] = "again"


def _gemms_transposed(model: onnx.ModelProto) -> None:
    for tensor in _weights(model):
        if tensor.name == "w3":
            array = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for item in model.graph.node:
        if item.op_type == "Gemm":
            item.attribute.append(helper.make_attribute("transB", 1))


def _bias_as_add(model: onnx.ModelProto) -> None:
    rebuilt: list[onnx.NodeProto] = []
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    for item in model.graph.node:
        rebuilt.append(item)
        if item.op_type not in _LINEAR or len(item.input) < 3:
            continue
        bias, result = item.input.pop(), item.output[0]
        if item.op_type == "Conv":
            column = numpy_helper.to_array(arrays[bias]).reshape(-1, 1, 1)
            arrays[bias].CopyFrom(numpy_helper.from_array(column, bias))
        for later in model.graph.node:
            if later is not item and result in later.input:
                later.input[list(later.input).index(result)] = f"{result}_biased"
        rebuilt.append(node("Add", [result, bias], f"{result}_biased"))
    del model.graph.node[:]
    model.graph.node.extend(rebuilt)


def _channels_last(model: onnx.ModelProto) -> None:
    """Write each Conv between two Transposes, and weights behind one, as tf2onnx does."""
    rebuilt: list[onnx.NodeProto] = []
    for item in list(model.graph.node):
        if item.op_type != "Conv":
            rebuilt.append(item)
            continue
        data, result = item.input[0], item.output[0]
        rebuilt += [
            node("Transpose", [data], f"{result}_last", perm=[0, 2, 3, 1]),
            node("Transpose", [f"{result}_last"], f"{result}_first", perm=[0, 3, 1, 2]),
        ]
        item.input[0] = f"{result}_first"
        rebuilt += [item, node("Transpose", [result], f"{result}_nhwc", perm=[0, 2, 3, 1])]
        rebuilt.append(node("Transpose", [f"{result}_nhwc"], f"{result}_nchw", perm=[0, 3, 1, 2]))
        for later in model.graph.node:
            if later is not item and result in later.input:
                later.input[list(later.input).index(result)] = f"{result}_nchw"
    del model.graph.node[:]
    model.graph.node.extend(rebuilt)
    _behind(model, lambda array: array.T, _transpose)


def _in_float16(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _same(array: np.ndarray) -> np.ndarray:
    return array


FORMS: Final[dict[str, tuple[int, int, Form | None]]] = {
    "plain": (17, 8, None),
    **{f"opset {opset}": (opset, 10 if opset > 20 else 7, None) for opset in (7, 9, 11, 13, 21)},
    "IR version 3": (9, 3, _as_inputs),
    "overridable": (17, 8, _as_inputs),
    "Constant nodes": (17, 8, _in_constant_nodes),
    "Identity": (17, 8, lambda m: _behind(m, _same, _identity)),
    "Identity chain": (17, 8, lambda m: _behind(m, _same, _identity, _identity)),
    "Transpose": (17, 8, lambda m: _behind(m, np.transpose, _transpose)),
    "Identity, Transpose": (17, 8, lambda m: _behind(m, np.transpose, _identity, _transpose)),
    "Transpose, opset 7": (7, 4, lambda m: _behind(m, np.transpose, _transpose)),
    "Transpose, opset 21": (21, 10, lambda m: _behind(m, np.transpose, _transpose)),
    "Reshape": (17, 8, lambda m: _behind(m, np.ravel, _reshape)),
    "Squeeze": (17, 8, lambda m: _behind(m, lambda array: array[None], _squeeze)),
    "Cast": (17, 8, lambda m: _behind(m, lambda array: array.astype(np.float16), _cast)),
    "Cast, Transpose": (
        17,
        8,
        lambda m: _behind(m, lambda array: array.T.astype(np.float16), _cast, _transpose),
    ),
    "Mul": (17, 8, lambda m: _behind(m, lambda array: 2 * array, _halved)),
    "QDQ": (17, 8, lambda m: _behind(m, _same, _through_qdq)),
    "shared": (17, 8, _with_twins()),
    "shared behind Identity": (17, 8, _with_twins(behind="Identity")),
    "tied": (17, 8, _tied),
    "transB": (17, 8, _gemms_transposed),
    "bias as Add": (17, 8, _bias_as_add),
    "channels last": (17, 8, _channels_last),
    "float16": (17, 8, _in_float16),
}
"""By name: opset, IR version, and what is done to the plain net."""

SAME: Final = frozenset(FORMS) - {
    "overridable",
    "Cast",
    "Cast, Transpose",
    "Mul",
    "QDQ",
    "shared",
    "shared behind Identity",
    "tied",
    "float16",
}
"""Forms whose weights are the numbers of the plain net, one matrix for one layer."""
