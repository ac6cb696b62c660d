"""Compute on 8-bit integers wherever that is measured to be faster than float.

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

    Transformers lose too much by ranges from samples: outliers differ from input to input. Where a
    trial on a few samples shows that, MatMul and Gemm with constant weights find the range of
    their input at run time (`activation-ranges=dynamic`), in the form that onnxruntime runs as one
    kernel with the bias inside, DynamicQuantizeMatMul, or MatMulIntegerToFloat behind one
    DynamicQuantizeLinear for all products that read a tensor:

        y = MatMul (x, w)

    becomes

        q, s, z = DynamicQuantizeLinear (x)
        p = MatMulInteger (q, w_codes, z)
        f = Cast <to: int = 1> (p)
        r = Mul (s, w_scale)
        y = Mul (f, r)

    All around them stays float, but for Convs where these pay too. Channels of the input that are
    far larger than others are divided, and the weights multiplied (SmoothQuant): in the
    LayerNormalization before, or by a Mul where others read the tensor too. How far (`alpha-of`) is
    searched for each group of products that read one tensor, by the error of what they make.

    Tables of embeddings become rows of int8 with a scale each, wherever ranges come from. Where the
    head of a model is the transpose of its table, both are on integers or neither. With ranges of
    run time they share one set of codes; rows of the table are divided by the scales that smooth
    the head, unless that doubles their error.

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
    Softmax has the grid that its kernel needs, from 0 to 1; what it makes zero, such as masked
    positions at -10,000, takes no part in the range of what it reads. A range found at run time is
    that of the very values, so none of them is cut off. Weights are rounded with error feedback:
    the other weights make up for what rounding one of them does to the output, E‖(W − Ŵ)x‖² (layers
    of more than 8,192 inputs: to nearest). Those of products with ranges of run time are rounded to
    nearest: sentences give fewer rows than the widest products have inputs, and feedback would fit
    these rows at the cost of others. Biases keep the mean output. Where products of u8 and s8
    saturate on this machine, weights take 7 bits.

Declines when:
    1. There are no calibration samples, so that ranges cannot be known.
    2. The model is quantized already.
    3. No placement is faster than float (`placement=measured`), unless the goal is bytes.
    4. An operator has no integer kernel in onnxruntime, its weight is computed at run time, or its
       type is not float32. Bodies of If and Loop stay float, except LSTMs in them, and so do
       LayerNormalization, GRU, and a Softmax whose result is an answer.
    5. The grid of a tensor loses more than 2 % of its energy, or an operand of a Concat is too
       small for the steps of the result (scores beside the corners of boxes).
    6. Products find their ranges at run time, and the operator stands between floats then.
    7. `only` and `skip` leave it out; or it went back to float, worst first, until `max-error` and
       the floors held on samples held back, and `--max-drop` on the figure that `--eval` measures
       (the user's own figure for boxes or texts).

Fidelity:
    LOSSY.

Reference:
    Jacob et al., arXiv:1712.05877 (grids, biases); Nagel et al., arXiv:1906.04721 (equalization,
    bias correction); Nagel et al., arXiv:2004.10568 (adaround); Frantar et al., arXiv:2210.17323
    (feedback); Xiao et al., arXiv:2211.10438 (smooth); Migacz, GTC 2017 (entropy). We differ:
    placement is an exact minimum cut over measured times, and confirmed on the whole model; alpha
    is searched for each group, and channels that were quiet on the samples count as half the median
    channel, as others may not find them quiet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Final

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph.ir import walk_graphs
from onnxslim.pipeline.layer_filter import FilteredPass, only_option, skip_option
from onnxslim.pipeline.options import (
    Assigned,
    Interval,
    at_least,
    one_of,
    option,
)
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.patterns import literal
from onnxslim.pipeline.policy import Goal
from onnxslim.pipeline.targets import Trait
from onnxslim.pipeline.trained_pass import TrainedPass
from onnxslim.quantization.calibration_ranges import RangeMethod
from onnxslim.quantization.clusters import clusters_of
from onnxslim.quantization.int8_options import CodeType, Decision, Int8Options, Placement
from onnxslim.quantization.recurrent import KERNEL
from onnxslim.quantization.rules import ActivationRanges
from onnxslim.quantization.run import Int8Run
from onnxslim.quantization.weight_rounding import Rounding
from onnxslim.records import Fidelity, PassResult, Skip

_QUANTIZED: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", KERNEL}
)


_ALPHA_OF: Final = Assigned(Interval(0.0, 1.0))


@dataclass(frozen=True)
class QuantizeInt8(TrainedPass, FilteredPass):
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
    activation_ranges: str = option(
        "auto",
        one_of("auto", *ActivationRanges),
        "where ranges of the inputs of MatMul and Gemm come from: samples, or the values of each "
        "run; auto: run time where that leaves the outputs clearly nearer",
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
        "auto",
        one_of("auto", *Rounding),
        "how weights are rounded: see `Why it is correct`; auto: feedback, and nearest where "
        "ranges are found at run time",
    )
    equalize: bool = option(
        default=False, help="even out ranges of channels between layers, before all else"
    )
    bias_correct: bool = option(default=True, help="biases keep the mean output of their layers")
    smooth: bool | None = option(
        None,
        help="move ranges of activations into the weights of MatMul and Gemm; default, or auto: "
        "where ranges are found at run time, and it leaves less error",
    )
    alpha_of: tuple[str, ...] = option(
        (),
        _ALPHA_OF,
        "alpha of smoothing, of products with ranges of run time, as 'PATTERN=ALPHA'; 0, and for "
        "products that no pattern matches: not smoothed; without entries it is searched",
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

    def writes(self) -> tuple[Trait, ...]:
        """QuantizeLinear and DequantizeLinear."""
        return (Trait.INT8,)

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
            rounding=None if self.rounding == "auto" else Rounding(self.rounding),
            equalize=self.equalize,
            bias_correct=self.bias_correct,
            smooth=self.smooth,
            alpha_of=partial(self._alpha, context) if self.alpha_of else None,
            placement=Placement(self.placement),
            layers=self.selection(context),
            max_error=self.max_error,
            ranges=None
            if self.activation_ranges == "auto"
            else ActivationRanges(self.activation_ranges),
        )

    def _alpha(self, context: Context, name: str) -> float:
        """The alpha that `alpha-of` gives the product `name`."""
        return _ALPHA_OF.find(self.alpha_of, context.names.of_layer(name), 0.0)

    def _without_measuring(self, decision: Decision) -> QuantizeInt8:
        """The options that repeat a decision, in the shorter of two spellings."""
        without = replace(
            self,
            placement=str(Placement.ALL),
            activations=str(decision.activations),
            reduce_range=decision.reduce_range,
            **self._ranges_as_decided(decision),
            max_error=None,
            skip=(*self.skip, *map(literal, decision.left)),
        )
        within = replace(without, only=tuple(map(literal, decision.chosen)), skip=())
        return min(without, within, key=lambda item: len(str(item)))

    def _ranges_as_decided(self, decision: Decision) -> dict[str, Any]:
        """Options of ranges and smoothing; none where nothing was there to decide."""
        if decision.ranges is None:
            return {}
        found: dict[str, Any] = {"activation_ranges": str(decision.ranges)}
        if decision.ranges is not ActivationRanges.DYNAMIC or self.smooth is False:
            return found
        if not any(decision.alphas.values()):
            return {**found, "smooth": False}
        (common, _), *_ = Counter(decision.alphas.values()).most_common(1)
        others = [
            f"{literal(name)}={alpha:g}"
            for name, alpha in decision.alphas.items()
            if alpha != common
        ]
        return {**found, "alpha_of": (*others, f"*={common:g}")}
