"""Store weights as integers of 8 or 4 bits; the computation stays float.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N, 12] x) => (float[N, 8] y)
        <float[12, 8] w = {
             127,254,127,254,127,254,127,254,3,8,5,-10,-4,-6,-2,-2,0,2,2,6,4,10,-5,-8,-3,-4,-1,
             0,1,4,3,8,5,-10,-4,-6,-2,-2,0,2,2,6,4,10,-5,-8,-3,-4,-1,0,1,4,3,8,5,-10,-4,-6,-2,
             -2,0,2,2,6,4,10,-5,-8,-3,-4,-1,0,1,4,3,8,5,-10,-4,-6,-2,-2,0,2,2,6,4,10,-5,-8,-3,
             -4,-1,0,1,4}> {
        y = MatMul (x, w)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[N, 12] x) => (float[N, 8] y)
        <int8[12, 8] codes = {
             127,127,127,127,127,127,127,127,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,
             1,2,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,1,
             2,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,1,2,3,4,5,-5,-4,-3,-2,-1,0,1,2},
         float[8] scale = {1,2,1,2,1,2,1,2}> {
        w = DequantizeLinear <axis: int = 1> (codes, scale)
        y = MatMul (x, w)
    }
    ```
    This is done to weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, and to tables
    that Gather reads, in bodies too. Onnxruntime 1.32 treats each form differently (measured):

    - One MatMul or Gemm that reads a DequantizeLinear becomes one kernel, MatMulNBits, where scales
      go by output channel or by 16, 32, 64, ... columns. The weight stays integers in memory. It is
      3 to 4 times as fast as float for one row of input. For 128 rows, with VNNI, it is 1.3 times
      as fast with 4 bits and 1.5 to 1.7 times with 8; without VNNI 8 bits are slower than float.
      The kernel rounds its *input* to 8 bits for each block of columns (45 dB). With 8 bits, blocks
      of 64 columns are 1.1 times as fast as those of 32 that it makes of channels, those of 128
      1.2 times (MiniLM: 29.9, 29.6 and 27.4 dB).
    - Any other DequantizeLinear (Conv, Gemm with transB, a weight with two readers, Relu or Clip
      and more behind it) is computed anew in every run. Cast and Mul are computed once, when a
      session starts.
    - Gather of codes keeps the table small; DequantizeLinear in front of Gather computes all of it.
    - MatMulNBits itself takes weights with several readers, in bodies, and before Relu.

    So `form=native` writes DequantizeLinear where there is a kernel (a matrix with transB is
    transposed for it), moves codes through Gather, and puts a local function of Cast and Mul
    everywhere else: a smaller file with the speed and the memory of float. All of this is standard
    ONNX. `matmul-nbits` writes MatMulNBits itself, for MatMul and Gemm (an Add takes the bias).
    `dequantize` writes DequantizeLinear everywhere, `folded` the local function.

    A table of embeddings whose transpose is the head too would have no kernel: `native` gives the
    head codes of its own, and `matmul-nbits` lets Gather pick from the codes that MatMulNBits
    reads. A Llama of 311 MB decodes a token 3.6 times as fast from 69 MB, and 3.7 times from 49.

    `auto` times the whole model. It takes `native`; `matmul-nbits` where that is faster, or
    smaller and as fast; and `folded` where both are slower than float. With 4 bits, MatMulNBits
    that computes in float (`accuracy-level=0`) is tried where the others are not faster. Without
    timing, `auto` is `native`. Weights of float16 are always `folded`.

    4 bits, and blocks in DequantizeLinear, need opset 21, to which the model is raised; MatMulNBits
    needs no opset. Where a block does not divide the columns, a smaller one of the kernel's sizes
    that does is taken. If there is none, `native` writes the local function, `dequantize` the
    largest block that divides them, as other engines refuse DequantizeLinear whose last block is
    not full; MatMulNBits has such blocks by design.

Why it is correct:
    It is not exact. w ≈ scale·(code − zero point), one scale for each output channel, or for each
    `block` of its columns. Each scale takes, of a few clipping ratios, the one with the least
    error. 4 bits use all 16 codes, with a negative scale where the largest weight is positive.
    With calibration samples the codes minimise E‖(W − Ŵ)x‖²: the other weights make up for what
    rounding one of them does to the output. Biases keep the mean output. Without samples, and for
    layers of more than 8,192 inputs, rounding is to nearest (H = I).

Declines when:
    1. The weight is computed at run time, quantized already, or neither float32 nor float16.
    2. Codes and scales would take as many bytes as the weight.
    3. A layer that `only` and `skip` leave out shares the weight.
    4. The opset is too low and cannot be raised (see `raise-opset`): then 4 bits are only possible
       with MatMulNBits, and 8 bits with a scale for each output channel, or as `folded`.
    A table stays tied to its head where another node reads it too, where the head scales or turns
    its data or lies in a body, and where onnxruntime would make no kernel of the head.

Fidelity:
    LOSSY.

Reference:
    Frantar et al., arXiv:2210.17323 (feedback, GPTQ); Dettmers and Zettlemoyer, arXiv:2212.09720
    (blocks at 4 bits); ONNX DequantizeLinear-21 (`block_size`); onnxruntime's ContribOperators,
    MatMulNBits. We differ: the target is the output of the original model's layer, and the form is
    chosen by what onnxruntime makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import onnx_graphsurgeon as gs

from onnxslim.errors import UsageError
from onnxslim.lossy.layer_pass import LayerPass
from onnxslim.lossy.problems import MAX_INPUTS
from onnxslim.pipeline.options import Interval, OptionValue, at_least, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.quantization.weight_layouts import is_block_of_kernel
from onnxslim.quantization.weight_only import WeightOnlyOptions, WeightOnlyRun
from onnxslim.quantization.weight_rounding import Rounding
from onnxslim.quantization.weight_storage import StorageForm
from onnxslim.records import Fidelity, PassResult

_BITS: Final = (8, 4)


@dataclass(frozen=True)
class QuantizeWeights(LayerPass):
    """Store weights as integers of 8 or 4 bits; the computation stays float."""

    name: ClassVar[str] = "quantize-weights"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,quantize-weights": "8-bit weights, the computation stays float",
        "quantize-weights:bits=4:block=32": "4-bit weights, a scale for each 32",
        "quantize-weights:form=matmul-nbits": "8 bits as onnxruntime's own operator, near-lossless",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"bits": (8, 4)}
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {"bits": (8, 4)}
    max_inputs: ClassVar[int | None] = MAX_INPUTS

    bits: int = option(8, Interval(4, 8), "bits of a code: 8 or 4")
    block: int | None = option(
        None,
        at_least(0),
        "input columns that share a scale, at most; 0: all of an output channel; default: 32 with "
        "4 bits; with 8 bits 64 where onnxruntime has a kernel, else 0",
    )
    symmetric: bool = option(default=True, help="zero is the middle code; no zero points are kept")
    rounding: str = option(
        "auto",
        one_of("auto", *Rounding),
        "how weights are rounded; auto: feedback with calibration samples, else nearest",
    )
    form: str = option("auto", one_of(*StorageForm), "how integers are stored: see `Rewrite`")
    accuracy_level: int | None = option(
        None,
        Interval(0, 4),
        "accuracy level of MatMulNBits: 4 rounds inputs to 8 bits; 0 computes in float; default: "
        "4, or with 4 bits 0 where that alone is measured to be faster than float",
    )

    def __post_init__(self) -> None:
        """Check options against each other.

        Raises:
            UsageError: `bits` is neither 8 nor 4, or MatMulNBits takes no such block.
        """
        super().__post_init__()
        if self.bits not in _BITS:
            raise UsageError(f"Option `bits` of `{self.name}` must be 8 or 4; got {self.bits}.")
        is_packed = self.form == StorageForm.MATMUL_NBITS and self.block is not None
        if is_packed and not (self.block and is_block_of_kernel(self.block)):
            raise UsageError(
                f"Option `block` of `{self.name}` must be a power of two, 16 or more, with "
                f"form=matmul-nbits; got {self.block}."
            )

    def softened(self, share: float) -> QuantizeWeights | None:
        """See `Pass.softened`; there is nothing between 4 and 8 bits."""
        return None if self.bits == max(_BITS) else replace(self, bits=max(_BITS))

    def loss_bound(self) -> str | None:
        """Of 8 bits, a code is within half a step of the weight."""
        if self.bits < 8:
            return None
        return "an 8-bit code is within 1/254 of the largest weight of its channel"

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Find codes for every selected weight, then store them all."""
        options = WeightOnlyOptions(
            bits=self.bits,
            block=self.block,
            symmetric=self.symmetric,
            rounding=None if self.rounding == "auto" else Rounding(self.rounding),
            form=StorageForm(self.form),
            accuracy_level=self.accuracy_level,
            layers=self.selection(context),
            schedule=self.schedule,
            target=context.engine,
        )
        run = WeightOnlyRun(options, graph, context)
        result = run.result()
        if not run.is_timed:
            return result
        chosen = replace(self, form=str(run.options.form))
        if run.options.form is StorageForm.MATMUL_NBITS:
            chosen = replace(chosen, accuracy_level=run.options.accuracy_level)
        return replace(result, resolved=str(chosen))
