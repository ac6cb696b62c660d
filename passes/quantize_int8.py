"""Compute on 8-bit integers (QDQ form) wherever that is measured to be faster than float.

Rewrite:
    An operator that has an integer kernel in onnxruntime gets a QuantizeLinear and a
    DequantizeLinear behind each of its inputs and outputs. Weights become int8 initializers with a
    scale for each output channel, biases int32. Onnxruntime fuses all of it into one integer
    kernel:

        y = Conv (x, w, b)

    becomes

        xq = QuantizeLinear (x, x_scale, x_zero)
        xd = DequantizeLinear (xq, x_scale, x_zero)
        wd = DequantizeLinear <axis: int = 0> (w_codes, w_scale, w_zero)
        bd = DequantizeLinear <axis: int = 0> (b_codes, b_scale, b_zero)
        yf = Conv (xd, wd, bd)
        yq = QuantizeLinear (yf, y_scale, y_zero)
        y = DequantizeLinear (yq, y_scale, y_zero)

    That works for Conv, Gemm, MatMul, Add (also where it was written as Sum), Mul, Concat,
    AveragePool, GlobalAveragePool, Sigmoid, LeakyRelu, Softmax inside the graph, and
    BatchNormalization and HardSigmoid as depthwise Convs. A Relu or Clip behind them becomes the
    end of a range. MaxPool, Resize to the nearest, Reshape, Transpose, Split, Slice, Gather and the
    like move integers, on the grid of their input. A Clip without bounds keeps an operator in float
    where onnxruntime would put it on integers, because all of its neighbours are. An opset below 13
    is raised to 13 (see `raise-opset`). LSTM becomes onnxruntime's DynamicQuantizeLSTM, in bodies
    too: it reads and makes floats, and finds the range of each step's input at run time; its
    weights become int8.

    Which operators: `placement=measured` profiles the model in float and on integers, and finds the
    set of kernels with the least total time, crossings between float and integers included, as a
    minimum cut. That set, the sets found by profiling and cutting again, all operators, and layers
    alone are then timed as whole models in one run. The fastest is kept; of those that timing
    cannot tell apart, the one that is fastest by the profiles. Where none is faster than float,
    nothing changes, except with `--goal bytes`: then every weight becomes integers, and the report
    says how much faster or slower that is. `placement=all` and `conv-matmul` measure no time.

Why it is correct:
    It is not exact. x ≈ scale·(code − zero point), to half a scale inside the calibration range.
    Zero is always exact, so padding is. Ranges come from the calibration samples. By default each
    tensor gets, of the ranges that five methods find, the one that moves the outputs least when the
    tensor alone is on its grid. Where the integer model is clearly nearer with each tensor's range
    of least error, or with one method for all tensors, those are taken; all on samples held back.
    Softmax has the grid that its kernel needs, from 0 to 1. Weights are rounded with error
    feedback: the other weights make up for what rounding one of them does to the output,
    E‖(W − Ŵ)x‖² (layers of more than 8,192 inputs: to nearest). Biases keep the mean output. Where
    products of u8 and s8 saturate on this machine, weights take 7 bits.

Declines when:
    1. There are no calibration samples, so that ranges cannot be known.
    2. The model is quantized already.
    3. No placement is faster than float (`placement=measured`), unless the goal is bytes.
    4. An operator has no integer kernel in onnxruntime, its weight is computed at run time, or its
       type is not float32. Bodies of If and Loop stay float, except LSTMs in them, and so do
       LayerNormalization, GRU, and a Softmax whose result is an answer.
    5. The grid of a tensor loses more than 2 % of its energy, or an operand of a Concat is too
       small for the steps of the result (scores beside the corners of boxes).
    6. `only` and `skip` leave it out; or it went back to float, worst first, until `max-error` and
       the floors held on samples held back, and `--max-drop` on the figure that `--eval` measures
       (the user's own figure for boxes or texts).

Fidelity:
    LOSSY.

Reference:
    Jacob et al., arXiv:1712.05877 (grids, biases); Nagel et al., arXiv:1906.04721 (equalization,
    bias correction); Nagel et al., arXiv:2004.10568 (adaround); Frantar et al., arXiv:2210.17323
    (feedback); Xiao et al., arXiv:2211.10438 (smooth); Migacz, GTC 2017 (entropy). We differ:
    placement is an exact minimum cut over measured times, and confirmed on the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Final

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.ir import walk_graphs
from onnxslim.pipeline.layer_filter import FilteredPass, only_option, skip_option
from onnxslim.pipeline.options import at_least, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.patterns import literal
from onnxslim.pipeline.policy import Goal
from onnxslim.quantization.calibration_ranges import RangeMethod
from onnxslim.quantization.clusters import clusters_of
from onnxslim.quantization.recurrent import KERNEL
from onnxslim.quantization.run import CodeType, Decision, Int8Options, Int8Run, Placement
from onnxslim.quantization.weight_rounding import Rounding
from onnxslim.records import Fidelity, PassResult, Skip

_QUANTIZED: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", KERNEL}
)


@dataclass(frozen=True)
class QuantizeInt8(FilteredPass):
    """Compute on 8-bit integers wherever that is measured to be faster than float."""

    name: ClassVar[str] = "quantize-int8"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,quantize-int8": "integers where they run faster here",
        "quantize-int8:placement=all": "integers wherever possible, for the bytes",
        "quantize-int8:max-error=0.05": "fewer operators, until the error is so small",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    changes_weights: ClassVar[bool] = True

    calibration: str = option(
        "auto",
        one_of("auto", *RangeMethod),
        "how ranges of activations are chosen; auto: by the outputs, which should stay nearest on "
        "samples held back",
    )
    activations: str = option(
        "auto",
        one_of("auto", *CodeType),
        "type of activations; auto: u8, on ARM s8",
    )
    weights: str = option("s8", one_of(*CodeType), "type of weights")
    per_channel: bool = option(default=True, help="a scale for each output channel of a weight")
    symmetric: bool = option(default=False, help="ranges of activations are symmetric about zero")
    reduce_range: bool | None = option(
        None,
        help="weights take 7 bits; default, or auto: where products of codes saturate here",
    )
    rounding: str = option(
        "feedback", one_of(*Rounding), "how weights are rounded: see `Why it is correct`"
    )
    equalize: bool = option(
        default=False, help="even out ranges of channels between layers, before all else"
    )
    bias_correct: bool = option(default=True, help="biases keep the mean output of their layers")
    smooth: bool = option(
        default=False, help="move ranges of activations into the weights of MatMul and Gemm"
    )
    placement: str = option(
        "measured",
        one_of(*Placement),
        "which operators become integers: what is fastest here, all that can, or layers",
    )
    only: tuple[str, ...] = only_option("operators to quantize")
    skip: tuple[str, ...] = skip_option("operators")
    max_error: float | None = option(
        None,
        at_least(0),
        "largest relative error of an output, on samples held back; operators go back to float "
        "until it holds",
    )

    def needs_calibration(self) -> str | None:
        """Ranges come from samples."""
        return "to know the ranges of activations"

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse what cannot be done at all.

        Raises:
            NotApplicable: saying what to give.
        """
        ops = {node.op for inner in walk_graphs(graph) for node in inner.nodes}
        if ops & _QUANTIZED or any(op.startswith("QLinear") for op in ops):
            raise NotApplicable("the model is quantized already")
        for_bytes = context.goal is Goal.BYTES
        if self.placement == "measured" and context.stopwatch is None and not for_bytes:
            raise NotApplicable(
                "placement=measured needs models to be timed: leave out --no-latency, or choose "
                "placement=all or conv-matmul"
            )

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The operators with an integer kernel."""
        return tuple(cluster.name for cluster in clusters_of(graph).all)

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Prepare, observe, place, round, insert."""
        try:
            run = Int8Run(
                self._int8_options(context), graph, context, partial(self.check_patterns, context)
            )
            result = run.result()
        except NotApplicable as reason:
            return PassResult(skips=(Skip(graph.name, str(reason)),))
        decision = run.decision
        if decision is None or not (self.placement == Placement.MEASURED or decision.left):
            return result
        return replace(result, resolved=str(self._without_measuring(decision)))

    def _int8_options(self, context: Context) -> Int8Options:
        return Int8Options(
            method=None if self.calibration == "auto" else RangeMethod(self.calibration),
            activations=None if self.activations == "auto" else CodeType(self.activations),
            weights=CodeType(self.weights),
            per_channel=self.per_channel,
            symmetric=self.symmetric,
            reduce_range=self.reduce_range,
            rounding=Rounding(self.rounding),
            equalize=self.equalize,
            bias_correct=self.bias_correct,
            smooth=self.smooth,
            placement=Placement(self.placement),
            layers=self.selection(context),
            max_error=self.max_error,
        )

    def _without_measuring(self, decision: Decision) -> QuantizeInt8:
        """The options that repeat a decision, in the shorter of two spellings."""
        without = replace(
            self,
            placement=str(Placement.ALL),
            activations=str(decision.activations),
            reduce_range=decision.reduce_range,
            max_error=None,
            skip=(*self.skip, *map(literal, decision.left)),
        )
        within = replace(without, only=tuple(map(literal, decision.chosen)), skip=())
        return min(without, within, key=lambda item: len(str(item)))
