"""Store weights as float16, and compute in float16 on request.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N, 5] x) => (float[N, 6] y)
    <float[5, 6] w = {
        1, 2, 4, 1, 2, 4,
        1, 2, 4, 1, 2, 4,
        1, 2, 4, 1, 2, 4,
        1, 2, 4, 1, 2, 4,
        1, 2, 4, 1, 2, 4
    }>
    {
        y = MatMul (x, w)
    }
    ```
    becomes (the text form of ONNX spells a float16 by its bits)
    ```
    <opset_import: ["" : 17]>
    after (float[N, 5] x) => (float[N, 6] y)
    <float16[5, 6] w_float16 = {
        15360, 16384, 17408, 15360, 16384, 17408,
        15360, 16384, 17408, 15360, 16384, 17408,
        15360, 16384, 17408, 15360, 16384, 17408,
        15360, 16384, 17408, 15360, 16384, 17408,
        15360, 16384, 17408, 15360, 16384, 17408
    }>
    {
        w = Cast <to = 1> (w_float16)
        y = MatMul (x, w)
    }
    ```
    That is `compute=float32`, the default: onnxruntime folds the Cast when it loads the model, so
    bytes halve, and speed and memory stay what they were.

    With `compute=float16` operators read and make float16, and so do graphs in bodies:

        xh = Cast <to = 10> (x)
        yh = MatMul (xh, w_float16)
        y = Cast <to = 1> (yh)

    That is for GPUs and other accelerators. On x86 onnxruntime has float16 kernels for data
    movement, but for hardly any operator that computes: it computes in float32 between Casts, and
    drops those Casts that cancel out. So x86 gains no speed, loses some around data movement, and
    rounds less than an accelerator does. Inputs and outputs of the graph keep their types either
    way.

    Matrix products become float16 wherever they may. All other operators are chosen so that the
    least bytes go through memory, Casts included: a minimum cut. A tensor has one Cast for each
    direction, and no Cast stands between two operators in float16. Operators that stay float32
    store their weights as float16 all the same.

Why it is correct:
    It is not exact, unless float16 holds every weight as it is (a model that was float16 once):
    then the change is EXACT. Otherwise a value keeps 11 bits, and x becomes x·(1 + e), |e| <=
    2^-11, as long as it is between 6.1e-5 and 65504. With calibration samples no tensor becomes
    float16 that comes within a factor of 4 of the end, or lies below the beginning.

Declines when:
    1. ONNX has no float16 for an operator in the model's opset, the operator is outside the
       standard, has bodies, or is quantized; or an attribute sets the type of its result.
    2. A constant has values that float16 does not hold: too large, so small that more than 1e-6 of
       its energy would be lost, or rounded to zero (in a matrix: more than 1 % of the entries), and
       the outputs on samples, of the user or seeded, show it, or cannot tell. Where they bear it,
       values too large become 65504: constants in doubt may cost as much as all others together,
       or what leaves 60 dB. Not tried are small constants, divisors that would become zero, tables
       with values that are too large, and, without samples of the user, all such constants.
    3. Samples show a tensor that does not fit. Without samples, operators whose intermediate
       results can leave the range stay float32: sums and means over many values, norms, Exp, Pow,
       Div, Softmax.
    4. It is cast to another type, or gives coordinates (Resize, RoiAlign).
    5. The Casts around it would cost more memory traffic than float16 saves.
    6. A constant is too small for a Cast to pay.
    7. `only` and `skip` leave it out, or `max-error` is missed.

Fidelity:
    LOSSY.

Reference:
    Micikevicius et al., arXiv:1710.03740 (what must stay float32); IEEE 754-2019, binary16. We
    differ: types come from the operators' schemas, borders from a minimum cut, ranges from data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Node, node_label, walk_graphs
from onnxslim.pipeline.layer_filter import FilteredPass, only_option, skip_option
from onnxslim.pipeline.options import at_least, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.targets import Trait
from onnxslim.precision.operand_types import half_operands
from onnxslim.precision.run import convert
from onnxslim.records import Fidelity, PassResult


@dataclass(frozen=True)
class ConvertFp16(FilteredPass):
    """Store weights as float16, and compute in float16 on request."""

    name: ClassVar[str] = "convert-fp16"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,convert-fp16": "weights as float16, half the bytes at the same speed",
        "convert-fp16:compute=float16:max-error=0.01": "computes in float16, if so accurate",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    changes_weights: ClassVar[bool] = True
    settles: ClassVar[bool] = False  # it writes Casts of constants itself

    compute: str = option(
        "float32",
        one_of("float16", "float32"),
        "the type that operators compute in; float32: weights alone become float16, at the same "
        "speed",
    )
    only: tuple[str, ...] = only_option("operators to convert")
    skip: tuple[str, ...] = skip_option("operators")
    max_error: float | None = option(
        None,
        at_least(0),
        "largest relative error of an output, on samples held back; fewer operators become float16 "
        "until it holds",
    )

    def loss_bound(self) -> str | None:
        """Weights keep 11 bits, and products of inputs with them as many.

        Values that operators compute in float16 can leave its range, which only data show.
        """
        if self.compute == "float16":
            return None
        return (
            "a float16 weight is within 2^-11 of the float, or within 2^-25 where it is tiny, "
            "whatever it is multiplied by"
        )

    def writes(self) -> tuple[Trait, ...]:
        """Operators in float16, on request."""
        return (Trait.FLOAT16,) if self.compute == "float16" else ()

    def needs_calibration(self) -> str | None:
        """An error is measured on samples."""
        return None if self.max_error is None else "to measure max-error"

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse patterns that match no operator.

        Raises:
            UsageError: naming the option, the pattern, and the closest names.
        """
        self.check_patterns(context, self.targets(graph))

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The operators that compute with floats, in bodies too."""
        return tuple(
            node_label(node)
            for inner in walk_graphs(graph)
            for node in inner.nodes
            if half_operands(node, graph.opset) is not None
        )

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Convert what the options select, then less, until `max-error` holds."""
        selection = self.selection(context)

        def accepts(node: Node) -> bool:
            return selection.accepts(node_label(node))

        computes = self.compute == "float16"
        return convert(graph, context, accepts, computes=computes, max_error=self.max_error)
