"""Write a model in the forms that another engine than onnxruntime takes.

Rewrite:
    ```
    <opset_import: ["" : 21]>
    before (float[N, 20] x) => (float[N, 1] y)
        <int8[20, 1] codes = {
            1,2,3,4,5,6,7,-1,-2,-3,-4,-5,-6,-7,1,2,3,4,5,6}, float[3, 1] scale = {1,2,4}> {
        w = DequantizeLinear <axis: int = 0, block_size: int = 8> (codes, scale)
        y = MatMul (x, w)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 21]>
    after (float[N, 20] x) => (float[N, 1] y)
        <int8[5, 4, 1] w_codes = {1,2,3,4,5,6,7,-1,-2,-3,-4,-5,-6,-7,1,2,3,4,5,6},
         float[5, 1, 1] w_scale = {1,1,2,2,4}, int64[2] w_shape = {20, 1}> {
        a = Cast <to: int = 1> (w_codes)
        b = Mul (a, w_scale)
        w = Reshape (b, w_shape)
        y = MatMul (x, w)
    }
    ```
    A table says of each engine what it takes, with the source of each entry (`docs/targets.md`).
    What the engine does not take is replaced by the smallest form that it does:

    - local functions by their nodes; where it has no operators that decode codes, by the weights
    - sparse initializers by dense ones
    - codes of 4 bits, blocks that do not divide the axis, and MatMulNBits by DequantizeLinear in
      whole blocks, by Cast and Mul of 8-bit codes, or by floats
    - zero points other than 0, and unsigned codes, by int8 codes with zero point 0; biases of
      32-bit codes by floats
    - ranges that are found at run time, and QuantizeLinear, by the operators on floats
    - If by both branches and Where, where they return the same shapes
    - onnxruntime's DynamicQuantizeLSTM by an LSTM in float32
    - arithmetic in float16 by float32, with the weights in float16 behind a Cast
    - an opset that is too high, where every operator is the same in a lower one; one that is too
      low is raised

    The pass goes last, and is kept whatever it costs. The passes before it know the engine: they
    write no form that it does not take where they have another, or say that they do nothing
    because of it, and what they save is measured behind this pass. `--target T` puts
    `retarget:to=T` at the end of a pipeline.

Why it is correct:
    Functions, sparse initializers, blocks and biases stand for the same numbers in another form.
    A grid with another zero point or scale is another grid, so that values round elsewhere; where
    integers become floats, nothing rounds any more. The step is measured like any other.

Declines when:
    1. Nothing replaces what the engine does not take: an If whose branches return different shapes
       or types, other operators of onnxruntime alone, operators that it lacks, an opset that is too
       high. The report names each node.
    2. Codes are an input or output of the model, whose type is promised.

Fidelity:
    LOSSY where grids change, or kernels on integers become others; else EXACT, or CLOSE for what
    computed in float16.

Reference:
    The table `onnxslim/pipeline/targets.toml` names a source for each entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.io.model import Model
from onnxslim.lowering.run import lower
from onnxslim.pipeline.options import one_of, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.targets import target_of, targets
from onnxslim.records import Fidelity, PassResult


@dataclass(frozen=True)
class Retarget(Pass):
    """Write a model in the forms that another engine than onnxruntime takes."""

    name: ClassVar[str] = "retarget"
    examples: ClassVar[Mapping[str, str]] = {
        "retarget": "for all engines that were run",
        "retarget:to=openvino": "for OpenVINO, whatever made the file",
        "simplify,quantize-weights:bits=4,retarget:to=tensorrt": "for TensorRT from the start",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    is_final: ClassVar[bool] = True

    to: str = option("portable", one_of(*targets()), "the engine that the file is for")

    @property
    def engine(self) -> str:
        """See `Pass.engine`."""
        return self.to

    def loss_bound(self) -> str | None:
        """What the step moves is less than what put the model on integers, or nothing."""
        if target_of(self.to).is_default:
            return "the model stays as it is"
        return None

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Replace what the engine does not take, and name what is left."""
        return lower(context.model or Model.of(graph), target_of(self.to), context)
