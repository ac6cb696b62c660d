"""Write the zstd dictionary with which packed files compress their graphs.

    python docs/packed_words.py onnxslim/packing/words-1.bin

This script was run once. The dictionary is part of format version 1: a changed byte would make all
files of that version unreadable. A new dictionary needs a new name and a new version
(`packing/container.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxslim.codebook.lookup_function import LookupVariant, StageVariant

_LEVELS = ((256,), (2,), (3,), (4, 16), (2, 16), (2, 4), (4,), (16,))


def _functions() -> Iterator[bytes]:
    for padded in (True, False):
        for bases in _LEVELS:
            function = LookupVariant((StageVariant(bases, padded=padded),)).function(17)
            yield function.SerializeToString(deterministic=True)


def _operators() -> Iterator[NodeProto]:
    """The operators that exporters write most often, with the names that they give."""
    make = helper.make_node
    for number in range(12):
        block = f"/layer{number % 4 + 1}/layer{number % 4 + 1}.{number // 4}"
        yield make(
            "Add", [f"{block}/conv2/Conv_output_0"], [f"{block}/Add_output_0"], f"{block}/Add"
        )
        yield make("Relu", [f"{block}/Add_output_0"], [f"{block}/relu/Relu_output_0"])
    simple = (
        "Sub Mul Div Pow Sqrt Exp Log Erf Tanh Sigmoid HardSigmoid HardSwish Clip LeakyRelu Relu "
        "Softmax Identity Shape Gather Unsqueeze Squeeze Slice Split Concat Transpose Reshape Pad "
        "Expand Where Equal Cast Range Resize Constant ConstantOfShape ReduceMean "
        "GlobalAveragePool AveragePool MaxPool LayerNormalization QuantizeLinear DequantizeLinear "
        "ConvTranspose LSTM GRU If Loop"
    )
    for op in simple.split():
        yield make(op, [f"/{op}_1_output_0"], [f"/{op}_output_0"], f"/{op}")
    yield make("ReduceMean", [], [], axes=[-1], keepdims=1)
    yield make("Softmax", [], [], axis=-1)
    yield make("Transpose", [], [], perm=[0, 2, 1, 3])
    yield make("Cast", [], [], to=TensorProto.INT64)
    yield make("Resize", [], [], coordinate_transformation_mode="asymmetric", mode="nearest")
    yield make("Constant", [], [], value=numpy_helper.from_array(np.array([1], np.int64)))
    yield make(
        "BatchNormalization",
        ["bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"],
        ["/bn1/BatchNormalization_output_0"],
        epsilon=1e-5,
        momentum=0.9,
    )
    yield make(
        "MatMul", ["/encoder/layer.0/MatMul_output_0", "onnx::MatMul_100"], ["/MatMul_output_0"]
    )
    for number in range(4):
        before, after = f"/features/features.{number}", f"/features/features.{number + 1}"
        yield make(
            "Conv",
            [
                f"{before}/Relu_output_0",
                f"features.{number + 1}.weight",
                f"features.{number + 1}.bias",
            ],
            [f"{after}/Conv_output_0"],
            f"{after}/Conv",
            dilations=[1, 1],
            group=1,
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[1, 1],
        )
        yield make(
            "MaxPool",
            [f"{after}/Conv_output_0"],
            [f"{after}/MaxPool_output_0"],
            f"{after}/MaxPool",
            ceil_mode=0,
            dilations=[1, 1],
            kernel_shape=[2, 2],
            pads=[0, 0, 0, 0],
            strides=[2, 2],
        )
    yield make("Flatten", ["/Relu_output_0"], ["/Flatten_output_0"], "/Flatten", axis=1)
    yield make(
        "Gemm",
        ["/Flatten_output_0", "classifier.0.weight", "classifier.0.bias"],
        ["/classifier/classifier.0/Gemm_output_0"],
        "/classifier/classifier.0/Gemm",
        alpha=1.0,
        beta=1.0,
        transB=1,
    )
    yield make("Gemm", ["fc.weight.codes", "fc.bias"], ["output"], transB=1)
    yield make("Lookup16", ["w.codes", "w.table", "w.shape"], ["w"], domain="onnxslim")


def _model() -> ModelProto:
    tensors = [
        numpy_helper.from_array(np.zeros(2, np.int64), "conv1.weight.shape"),
        numpy_helper.from_array(np.zeros(8, np.uint8), "conv1.weight.codes"),
        numpy_helper.from_array(np.zeros(2, np.float32), "conv1.weight.table"),
        numpy_helper.from_array(np.zeros(2, np.float32), "fc.bias"),
    ]
    graph = helper.make_graph(
        list(_operators()),
        "main_graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1000])],
        tensors,
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("onnxslim", 1)]
    model = helper.make_model(graph, ir_version=8, opset_imports=imports, producer_name="pytorch")
    props = {"onnxslim.pipeline": "simplify,prune-weights,cluster-weights"}
    helper.set_model_props(model, {**props, "onnxslim.input_sha256": ""})
    return model


def words() -> bytes:
    """The dictionary; the phrases that are likeliest to be found come last."""
    return b"".join([_model().SerializeToString(deterministic=True), *_functions()])


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(words())
