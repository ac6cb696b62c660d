"""Replace weights by codes into small tables: k-means, product and residual quantization.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[1, 12] x) => (float[1, 8] y)
        <float[12, 8] w = {
             0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,
             0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,
             0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}> {
        y = MatMul (x, w)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17, "onnxslim" : 1]>
    after (float[1, 12] x) => (float[1, 8] y)
        <uint8[48] codes = {
             16,50,84,118,152,186,220,254,16,50,84,118,152,186,220,254,
             16,50,84,118,152,186,220,254,16,50,84,118,152,186,220,254,
             16,50,84,118,152,186,220,254,16,50,84,118,152,186,220,254},
         float[16] table = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}, int64[2] shape = {12, 8}> {
        w = onnxslim.Lookup16 (codes, table, shape)
        y = MatMul (x, w)
    }
    ```
    Weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, and tables that Gather reads
    become one node each of a model-local function. onnxruntime inlines and folds the function when
    it opens the model, so that the file shrinks and latency stays what it is. Codes are packed
    without waste: two codes of 4 bits to a byte, codes of 3 bits as a plane of 2 bits and one of 1.

Why it is correct:
    It is not exact. The weight W becomes Ŵ with entries from a table of 2^bits values. Without
    data ‖W − Ŵ‖² is least: k-means in one dimension, solved exactly. With data it is
    tr (W − Ŵ) H (W − Ŵ)ᵀ, H = E[x xᵀ] of the layer's input: each weight is weighted by the cost
    of moving it, and weights not yet rounded make up for the rounding errors of the others. Then
    values and codes are improved in turn; each step lowers the error. The output of a table of
    embeddings is one of its rows: with data each row counts as often as samples read it, and once
    more, without the positions that a mask of padding leaves out.

Declines when:
    1. The weight is computed at run time, not of floating point, or stored as a codebook already.
    2. A weight is shared with a layer that `only` and `skip` leave out.
    3. Codes and tables would take as many bytes as the weight.
    4. The opset is below 10 (11 with a table for each channel or group) and cannot be raised (see
       `raise-opset`): operators that unpack codes are missing.
    5. The number of input columns is no multiple of `vector`, or of `group`.

Fidelity:
    LOSSY. Zeros stay zero, with a code of their own; shared weights stay shared; the mean output
    stays, by way of the bias. With `biases` the biases have few values as well; they stay floats in
    the file, and pay once it is packed.

Reference:
    Han, Mao, Dally, arXiv:1510.00149 (Deep Compression); Gong et al., arXiv:1412.6115 (product and
    residual quantization); Choi, El-Khamy, Lee, arXiv:1612.01543 (Hessian-weighted k-means);
    Frantar et al., arXiv:2210.17323 (error feedback, GPTQ); van Baalen et al., arXiv:2402.15319
    (feedback for vectors); Wu (1991) and Grønlund et al., arXiv:1701.07204 (k-means in one
    dimension). We differ: no retraining; the target is what the original model's layer returned,
    and tables are refitted to it by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.codebook.weight import TableGranularity
from onnxslim.constraints.values import MIN_REPEATS
from onnxslim.errors import UsageError
from onnxslim.graph.ir import node_label
from onnxslim.graph.operands import const_array, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.codebook_pass import Answer, CodebookPass, Layout, table_type
from onnxslim.lossy.problems import Problem
from onnxslim.lossy.scalar_codebooks import TableSpec, find_scalar_codebook
from onnxslim.lossy.vector_codebooks import find_vector_codebook
from onnxslim.pipeline.options import Assigned, Interval, OptionValue, at_least, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity, PassResult
from onnxslim.solvers.kmeans.assignment import encode
from onnxslim.solvers.kmeans.levels import cluster
from onnxslim.solvers.kmeans.lloyd import TableInit

_BITS: Final = Interval(1, 8)
_VALUES: Final = Interval(2, 256)
_VALUES_OF: Final = Assigned(_VALUES, whole=True)
_PER: Final = {
    "tensor": TableGranularity.TENSOR,
    "channel": TableGranularity.ROW,
    "group": TableGranularity.RUN,
}


@dataclass(frozen=True)
class ClusterWeights(CodebookPass):
    """Replace weights by codes into small tables: k-means, product and residual quantization."""

    name: ClassVar[str] = "cluster-weights"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,cluster-weights": "16 values for each layer, 4 bits a weight",
        "cluster-weights:bits=8:per=channel": "256 values for each output channel",
        "cluster-weights:vector=4:bits=8": "pairs of weights share codes: 2 bits a weight",
    }
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"bits": (4, 3, 2)}
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {
        "values": (256, 2),
        "bits": (8, 1),
    }
    strengths_of_layers: ClassVar[tuple[str, ...]] = ("values-of",)

    bits: int = option(4, _BITS, "of a code; a table has 2^bits values, zero among them")
    values: int | None = option(None, _VALUES, "values of a table, in place of 2^bits")
    values_of: tuple[str, ...] = option(
        (), _VALUES_OF, "values for layers of their own, as 'PATTERN=NUMBER'"
    )
    init: str = option(
        "optimal",
        one_of(*TableInit),
        "how k-means starts; optimal: the exact solution, for single weights",
    )
    per: str = option(
        "tensor", one_of(*_PER), "what has a table: the weight, each output, each input group"
    )
    group: int = option(128, at_least(1), "input columns that share a table, with per=group")
    vector: int = option(1, at_least(1), "weights that one code stands for (product quantization)")
    stages: int = option(1, Interval(1, 4), "codes for each weight, whose values are added")
    weighting: str = option(
        "hessian", one_of("none", "hessian"), "whether k-means counts weights by what they do"
    )
    feedback: bool = option(
        default=True, help="let later weights make up for rounding errors (needs data)"
    )
    biases: int | None = option(
        None, _VALUES, "values of the biases of a layer, which pay in a packed file; default: all"
    )
    table: str = option(
        "float32",
        one_of("float32", "float16"),
        "type of the tables' values; tables of float16 weights are float16",
    )

    @property
    def _per(self) -> TableGranularity:
        return _PER[self.per]

    @property
    def _has_vectors(self) -> bool:
        return self.vector > 1 or self.stages > 1

    def __post_init__(self) -> None:
        """Check options against each other.

        Raises:
            UsageError: sub-vectors or stages with more than one table, or another start.
        """
        super().__post_init__()
        if self._has_vectors and self.per != "tensor":
            raise UsageError(
                f"Options `vector` and `stages` of `{self.name}` go with `per` tensor; got "
                f"{self.per!r}."
            )
        if self._has_vectors and self.init not in ("optimal", "kmeans++"):
            raise UsageError(
                f"Option `init` of `{self.name}` must be kmeans++ with `vector` or `stages`; got "
                f"{self.init!r}."
            )

    def _replaced(self, graph: gs.Graph, context: Context) -> PassResult:
        """Codes for weights, then few values for biases, which codes have moved by then."""
        selection = self.selection(context)
        layers = [la for la in weight_layers(graph)[0] if selection.accepts(la.name)]
        found = super()._replaced(graph, context)
        if self.biases is None:
            return found
        return PassResult.together([found, _with_few_biases(Rewriter(graph), layers, self.biases)])

    def _width(self, problem: Problem) -> int | None:
        return min(self.group, problem.layer.columns) if self._per is TableGranularity.RUN else None

    def _form(self, problem: Problem) -> TableSpec:
        values = 2**self.bits if self.values is None else self.values
        levels = _VALUES_OF.find(self.values_of, problem.layer_names, values)
        return TableSpec(
            int(levels),
            self._per,
            self._width(problem),
            min(np.dtype(self.table), table_type(problem)),
            TableInit(self.init),
            weighted=self.weighting == "hessian",
            feedback=self.feedback and problem.has_data,
        )

    def layout(self, problem: Problem) -> Layout:
        """One table, or one for each output or run of columns."""
        form = self._form(problem)
        return Layout(form.levels, form.per, form.width, self.vector, self.stages, form.table)

    def objection(self, problem: Problem) -> str | None:
        """That zeros would be lost, or columns do not fit."""
        columns = problem.layer.columns
        if self._has_vectors and not np.all(problem.weight):
            return "it has zeros, which sub-vectors and stages would not keep"
        for word, number in (("vector", self.vector), ("group", self._width(problem) or 1)):
            if columns % number:
                return f"its {columns} input columns are no multiple of {word}={number}"
        return None

    def solve(self, problem: Problem, seed: int) -> Answer:
        """K-means, with error feedback where there are data."""
        form = self._form(problem)
        if self._has_vectors:
            found = find_vector_codebook(problem, form, self.vector, self.stages, seed)
        else:
            mask = problem.weight != 0
            found = find_scalar_codebook(problem, form, None if mask.all() else mask, seed)
        return self.answer(problem, found)


def _with_few_biases(rw: Rewriter, layers: Sequence[WeightLayer], count: int) -> PassResult:
    """Give the biases of each layer `count` values: k-means in one dimension, solved exactly."""
    made: dict[int, gs.Constant] = {}
    for layer in layers:
        if layer.bias is None or not is_present(layer.node, layer.bias):
            continue
        old = layer.node.inputs[layer.bias]
        array = const_array(old)
        if array is None or not is_float(array.dtype) or not np.isfinite(array).all():
            continue
        if np.unique(array).size <= count:
            continue
        if id(old) not in made:
            values = np.asarray(array, np.float64)
            # so few that training sees them as values that stay equal
            table = cluster(values, min(count, values.size // MIN_REPEATS))
            near = table[encode(values, table)].astype(array.dtype)
            made[id(old)] = rw.constant(near, str(old.name))
        rw.set_input(layer.node, layer.bias, made[id(old)])
        what = f"{array.size:,} biases in {np.unique(made[id(old)].values).size} values"
        rw.note(node_label(layer.node), what, Fidelity.LOSSY)
    return rw.result()
