"""Small models, one for each thing that real files hold; the contract suite runs passes on all."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from support import parse


def conv_net(opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, pooling, Gemm, with weights that are random but fixed."""
    rng = np.random.default_rng(1)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.uniform(0.1, 1, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"], "bn"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w1", "b1"], ["e"], group=4),
        helper.make_node("Mul", ["e", "k"], ["f"]),
        helper.make_node("MaxPool", ["f"], ["g"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["y"], transB=1),
    ]
    weights = [
        weight("w0", 4, 3, 3, 3),
        *(weight(name, 4) for name in "sbmv"),
        weight("w1", 4, 1, 1, 1),
        weight("b1", 4),
        weight("k", 4, 1, 1),
        weight("w2", 5, 16),
        weight("b2", 5),
    ]
    return _model(
        nodes, [("x", [1, 3, 4, 4])], [("y", [1, 5])], weights, opset=opset, ir_version=ir_version
    )


def gemm_net() -> onnx.ModelProto:
    """MatMul and Add, twice, with a scale between that fits into either weight."""
    return parse(
        """<opset_import: ["" : 17]>
        g (float[batch, 4] x) => (float[batch, 2] y)
        <float[4, 3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,2,3}, float s = {2},
         float[3, 2] v = {1,2,3,4,5,6}, float[2] c = {1,2}>
        {
            a = MatMul (x, w)
            d = Add (a, b)
            e = Mul (d, s)
            f = Relu (e)
            h = MatMul (f, v)
            y = Add (h, c)
        }"""
    )


def attention() -> onnx.ModelProto:
    """A head of attention with shapes computed from the input, as exporters write it."""
    return parse(
        """<opset_import: ["" : 17]>
        g (float[N, L, 4] x) => (float[N, L, 4] y)
        <float[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float scale = {0.5},
         int64 zero = {0}, int64 one = {1}, int64[1] axis0 = {0}, int64[1] last = {4}>
        {
            q = MatMul (x, w)
            k = MatMul (x, w)
            kt = Transpose <perm = [0, 2, 1]> (k)
            s = MatMul (q, kt)
            scaled = Mul (s, scale)
            p = Softmax <axis = -1> (scaled)
            o = MatMul (p, x)
            sh = Shape (x)
            n = Gather <axis = 0> (sh, zero)
            l = Gather <axis = 0> (sh, one)
            n1 = Unsqueeze (n, axis0)
            l1 = Unsqueeze (l, axis0)
            target = Concat <axis = 0> (n1, l1, last)
            y = Reshape (o, target)
        }"""
    )


def rotary() -> onnx.ModelProto:
    """Rotary embeddings of two heads of four, as torch's exporters spell them."""
    return parse(
        """<ir_version: 11, opset_import: ["" : 23]>
        g (float[2, 3, 8] q, float[2, 3, 2] angles) => (float[2, 2, 3, 4] y)
        <int64[4] cut = {0, 0, 2, 4}, int64[1] one = {1}> {
            both = Concat <axis = -1> (angles, angles)
            c0 = Cos (both)
            c = Unsqueeze (c0, one)
            s0 = Sin (both)
            s = Unsqueeze (s0, one)
            q1 = Reshape (q, cut)
            x = Transpose <perm = [0, 2, 1, 3]> (q1)
            left, right = Split <axis = -1, num_outputs = 2> (x)
            n = Neg (right)
            t = Concat <axis = -1> (n, left)
            a = Mul (x, c)
            b = Mul (t, s)
            y = Add (a, b)
        }"""
    )


def branches() -> onnx.ModelProto:
    """An If on an input; its bodies capture outer tensors and repeat names of nodes and tensors."""
    return parse(
        """<opset_import: ["" : 17]>
        g (bool c, float[2, 3] x) => (float[2, 3] y)
        <float[3] w = {1, 2, 3}>
        {
            [same] a = Mul (x, w)
            y = If (c) <
                then_branch = t () => (float[2, 3] r)
                    <float[3] k = {1, 2, 3}>
                    { [same] m = Mul (x, w) n = Identity (m) r = Add (n, k) },
                else_branch = e () => (float[2, 3] r)
                    { k = Constant <value = float[3] {1, 2, 3}> ()
                      [same] m = Neg (a)
                      r = Add (m, k) }
            >
        }"""
    )


def loop() -> onnx.ModelProto:
    """A Loop whose body has a part that never changes."""
    return parse(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y)
        <int64 trips = {3}, bool go = {1}>
        {
            y = Loop (trips, go, x) <body = b (int64 i, bool p, float[2] s) => (bool q, float[2] t)
                { q = Identity (p)
                  two = Constant <value = float {2.0}> ()
                  four = Mul (two, two)
                  t = Mul (s, four) }>
        }"""
    )


def functions() -> onnx.ModelProto:
    """Two local functions, one of them never called."""
    return parse(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2, 3] x) => (float[2, 3] y) { a = Identity (x) y = local.Twice (a) }
        <opset_import: ["" : 17], domain: "local"> Twice (x) => (y) { y = Add (x, x) }
        <opset_import: ["" : 17], domain: "local"> Never (x) => (y) { y = Neg (x) }"""
    )


def quantized() -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear around a MatMul, weight in int8."""
    return parse(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 2] y)
        <float s = {0.1}, uint8 z = {128}, int8[3, 2] w = {1, 2, 3, 4, 5, 6}, float ws = {0.05},
         int8 wz = {0}>
        {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            wd = DequantizeLinear (w, ws, wz)
            m = MatMul (d, wd)
            mq = QuantizeLinear (m, s, z)
            y = DequantizeLinear (mq, s, z)
        }"""
    )


def old_format() -> onnx.ModelProto:
    """IR version 3, opset 9: initializers are inputs, scales and pads are attributes."""
    model = conv_net(opset=9, ir_version=3)
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(info)
    constant = numpy_helper.from_array(np.full((1, 5), 2, np.float32))
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["two"], value=constant),
            helper.make_node("Mul", ["y", "two"], ["z"]),
        ]
    )
    model.graph.output[0].name = "z"
    onnx.checker.check_model(model, full_check=True)
    return model


def unusual_types() -> onnx.ModelProto:
    """Constants in bfloat16, float8, int4, and strings."""
    types = {"b": ml_dtypes.bfloat16, "f8": ml_dtypes.float8_e4m3fn, "i4": ml_dtypes.int4}
    nodes, constants, last = [], [], "x"
    for name, dtype in types.items():
        constants.append(numpy_helper.from_array(np.array([1, 2, 3], dtype), name))
        nodes.append(helper.make_node("Cast", [name], [f"{name}_f"], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Add", [last, f"{name}_f"], [f"{name}_y"]))
        last = f"{name}_y"
    constants.append(numpy_helper.from_array(np.array(["a", "bé"], object), "text"))
    nodes.append(helper.make_node("Identity", ["text"], ["words"]))
    nodes.append(helper.make_node("Neg", [last], ["y"]))
    model = _model(nodes, [("x", [3])], [("y", [3])], constants, opset=21, ir_version=10)
    words = helper.make_tensor_value_info("words", onnx.TensorProto.STRING, [2])
    model.graph.output.append(words)
    return model


def sparse() -> onnx.ModelProto:
    """A sparse initializer, which onnxruntime makes dense."""
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Mul", ["a", "s"], ["y"])]
    model = _model(nodes, [("x", [3])], [("y", [3])], [], opset=21, ir_version=10)
    values = numpy_helper.from_array(np.array([5], np.float32), "s")
    indices = numpy_helper.from_array(np.array([1], np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    return model


def repeated_names() -> onnx.ModelProto:
    """Equal nodes, a shared weight, an output used inside, a node named as a tensor."""
    return parse(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y, float[2, 3] inner)
        <float[3] w = {1, 2, 3}, float one = {1}>
        {
            inner = Mul (x, w)
            [inner] b = Mul (inner, one)
            c = Mul (x, w)
            d = Add (b, c)
            y = Add (d, w)
        }"""
    )


def pass_through() -> onnx.ModelProto:
    """Outputs that are an input or a constant under another name."""
    return parse(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float[2] k, float[2] z)
        <float[2] w = {1, 2}>
        { y = Identity (x) k = Identity (w) z = Add (x, w) }"""
    )


def reshapes(opset: int = 13) -> onnx.ModelProto:
    """Movements of data in every form that an opset has for them, none of them needed."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["b", "flat"], ["c"]),
        helper.make_node("Reshape", ["c", "full"], ["d"]),
        helper.make_node("Slice", ["d", "zero", "end", "zero"], ["e"]),
        helper.make_node("Concat", ["e"], ["f"], axis=1),
        helper.make_node("Split", ["f"], ["g", "h"], axis=2),
        helper.make_node("Concat", ["g", "h"], ["i"], axis=2),
        helper.make_node("Relu", ["i"], ["j"]),
        helper.make_node("Cast", ["j"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    constants = [
        numpy_helper.from_array(np.array([-1], np.int64), "flat"),
        numpy_helper.from_array(np.array([2, 3, 4], np.int64), "full"),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([2**31 - 1], np.int64), "end"),
    ]
    if opset >= 18:
        nodes[6].attribute.append(helper.make_attribute("num_outputs", 2))
    return _model(nodes, [("x", [2, 3, 4])], [("y", [2, 3, 4])], constants, opset=opset)


def overridable() -> onnx.ModelProto:
    """An input with a default: an initializer that the caller may override."""
    return parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, float[2] w = {1, 2}) => (float[2] y)
        <float[2] k = {1, 2}>
        { a = Mul (x, w) b = Mul (a, k) y = Add (b, w) }"""
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, list[int]]],
    outputs: list[tuple[str, list[int]]],
    constants: list[onnx.TensorProto],
    *,
    opset: int,
    ir_version: int = 8,
) -> onnx.ModelProto:
    def info(name: str, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "g",
        [info(*item) for item in inputs],
        [info(*item) for item in outputs],
        constants,
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=imports)


TINY: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv net": conv_net,
    "conv net, opset 9": lambda: conv_net(opset=9),
    "conv net, opset 11": lambda: conv_net(opset=11),
    "conv net, opset 21": lambda: conv_net(opset=21, ir_version=10),
    "gemm net": gemm_net,
    "attention": attention,
    "rotary": rotary,
    "branches": branches,
    "loop": loop,
    "functions": functions,
    "quantized": quantized,
    "IR version 3": old_format,
    "unusual types": unusual_types,
    "sparse initializer": sparse,
    "repeated names": repeated_names,
    "pass-through": pass_through,
    "reshapes": reshapes,
    "reshapes, opset 11": lambda: reshapes(11),
    "reshapes, opset 18": lambda: reshapes(18),
    "overridable": overridable,
}
