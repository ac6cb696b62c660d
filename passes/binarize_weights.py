"""Replace weights by signs times a scale for each output, or by sums of a few of these.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 64] x) => (float[2, 1] y)
        <float[64, 1] w = {2, 2, -2, -2, -2, 2, 2, -2, -2, -2, 2, 2, -2, -2, -2, 2, 2, -2, -2, -2,
                           2, 2, -2, -2, -2, 2, 2, -2, -2, -2, 2, 2, -2, -2, -2, 2, 2, -2, -2, -2,
                           2, 2, -2, -2, -2, 2, 2, -2, -2, -2, 2, 2, -2, -2, -2, 2, 2, -2, -2, -2,
                           2, 2, -2, -2}> {
        y = MatMul (x, w)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17, "onnxslim" : 1]>
    after (float[2, 64] x) => (float[2, 1] y)
        <uint8[8] codes = {99, 140, 49, 198, 24, 99, 140, 49}, float[2] table = {-2, 2}, int64[2]
         shape = {64, 1}> {
        w = onnxslim.Lookup2 (codes, table, shape)
        y = MatMul (x, w)
    }
    ```
    Weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, and tables that Gather reads
    become one bit each, and a scale for each output. With `bases` = M they are sums of M such
    tensors. onnxruntime computes the dense weight when it opens the model, so that the file shrinks
    and latency stays what it is.

    With `activations=sign` these layers also read signs: their input x becomes k·Sign (x / k), by a
    Div, a Sign and a Mul that all layers of one input share. k is the mean of |x| over the elements
    of all calibration samples that are not zero; without samples it is 1. ONNX defines Sign (0) as
    0: behind a Relu an input becomes zeros and ones. This makes nothing faster, as onnxruntime has
    no kernel for products of signs; it shows what such a network can do, and is of use with
    `finetune`, without which the floors will mostly refuse it. The inputs of the first layers stay,
    those of LSTM, GRU and RNN, and those that are signs already.

Why it is correct:
    It is not exact. A row w becomes Σ_m α_m·s_m with s_m in {−1, +1}. Without data the best single
    base is s = sign(w), α = mean |w|. With data, H = E[x xᵀ] of the layer's input, the error is
    (w − Σ α_m s_m)ᵀ H (w − Σ α_m s_m): signs are chosen column by column, and the columns still to
    come make up for the error of those already chosen. Then two steps alternate, each of which
    lowers the error: the α are solved for by least squares with the signs fixed, and signs are
    turned. For M > 1 all M signs of a weight are chosen
    together; the first α come one after another, each fitted to the residual of those before it.

    With `finetune` the model is retrained as in BinaryConnect and XNOR-Net: a float that learns
    stands behind each weight and decides its signs (`codes=move`), and the scales learn too.

    k is the number for which E‖x − k·Sign (x)‖² is least. Weights and biases are fitted after the
    signs are there: to the output of the original layer, from the signs that the layer now reads.
    In training Sign (x / k) gets the gradient of the identity clipped to [-1, 1], so that it passes
    where |x| <= k; its own is zero.

Declines when:
    1. The weight is computed at run time, not of floating point, not finite, or a codebook
       already.
    2. A weight is shared with a layer that `only` and `skip` leave out.
    3. Codes and scales would take as many bytes as the weight.
    4. The opset is below 11 (10 for a layer of one output) and cannot be raised (see
       `raise-opset`): operators that unpack codes are missing.
    5. The weight has zeros, as after `prune-weights`: no sum of signs would keep them.
    6. With `activations=sign` the weight alone is replaced where the layer is one of the first, or
       recurrent, its input is a sign or zero in all samples, or lies in a body, where samples are
       not looked at.

Fidelity:
    LOSSY. Shared weights stay shared; the mean output stays, by way of the bias.

Reference:
    Rastegari et al., arXiv:1603.05279 (XNOR-Net), eq. 6; Lin, Zhao, Pan, arXiv:1711.11294
    (ABC-Net), eq. 4; Courbariaux et al., arXiv:1511.00363 (BinaryConnect); Hubara et al.,
    arXiv:1602.02830 (BNN: signs as inputs, and their gradient); Liu et al., arXiv:1808.00278
    (Bi-Real Net). We differ: without training, scales and signs fit the layer's output on
    calibration data; all layers are taken unless `skip` names them, the first and the last too;
    XNOR-Net's scale of inputs is one number for each tensor, a constant, and zeros stay zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.codebook.weight import TableGranularity
from onnxslim.lossy.codebook_pass import Answer, CodebookPass, Layout, table_type
from onnxslim.lossy.codebooks import Codebook
from onnxslim.lossy.problems import Problem
from onnxslim.lossy.scaled_codebooks import (
    InitialScales,
    ScaledCodebook,
    ScaledTableSpec,
    find_scaled_codebook,
)
from onnxslim.lossy.sign_activations import signed_inputs
from onnxslim.pipeline.options import Interval, OptionValue, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.records import PassResult

_BASES: Final = Interval(1, 5)
_NO_KERNEL: Final = (
    "activations=sign makes nothing faster: onnxruntime has no kernel for products of signs."
)


@dataclass(frozen=True)
class BinarizeWeights(CodebookPass):
    """Replace weights by signs times a scale for each output, or by sums of a few of these."""

    name: ClassVar[str] = "binarize-weights"
    trained_with: ClassVar[str] = "codes=move"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,binarize-weights:bases=3": "sums of three binary weights for each weight",
        "binarize-weights:only='fc*'": "layers whose name begins with fc",
        "binarize-weights:activations=sign:finetune=10": "signs as inputs, too, and trained",
    }
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"bases": (3, 2, 1)}
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {"bases": (4, 1)}

    bases: int = option(1, _BASES, "tensors of signs, each with a scale, that make up a weight")
    activations: str = option(
        "keep", one_of("keep", "sign"), "what layers read: their inputs, or signs times a scale"
    )

    def prepared(self, graph: gs.Graph, context: Context) -> PassResult:
        """Signs in front of the layers that become signs themselves, where that is asked for."""
        if self.activations == "keep":
            return PassResult()
        problems = self.candidates(graph, context)
        layers = [layer for problem in problems for layer in problem.layers]
        found = signed_inputs(graph, layers, context)
        return replace(found, notes=(_NO_KERNEL,)) if found.changed else found

    def layout(self, problem: Problem) -> Layout:
        """A bit for each weight and base, and a table for each output and base."""
        return Layout(2, TableGranularity.ROW, stages=self.bases, table=table_type(problem))

    def objection(self, problem: Problem) -> str | None:
        """That it has zeros."""
        return None if np.all(problem.weight) else "it has zeros, which no sign stands for"

    def solve(self, problem: Problem, seed: int) -> Answer:
        """Signs and scales."""
        factors = np.array(list(product((-1.0, 1.0), repeat=self.bases)))  # (2^M, M)
        form = ScaledTableSpec(
            factors, _greedy(self.bases), TableGranularity.ROW, is_solved=self.bases == 1
        )
        found = find_scaled_codebook(problem, form, table_type(problem))
        stages = tuple(self._stage(problem, found, factors, base) for base in range(self.bases))
        words = "as signs" if self.bases == 1 else f"as sums of {self.bases} signs"
        return self.answer(problem, Codebook(stages, found.error, found.weight), words)

    def _stage(
        self, problem: Problem, found: ScaledCodebook, factors: np.ndarray, base: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes (groups, rows, columns) and tables (groups · rows, 2) of one base."""
        scales = found.scales[:, base]
        flipped = (scales < 0).reshape(problem.layer.groups, problem.layer.rows, 1)
        codes = (factors[:, base] > 0)[found.codes] ^ flipped
        tables = np.abs(scales)[:, None] * np.array([-1.0, 1.0])
        return codes.astype(np.uint8), tables.astype(table_type(problem))


def _greedy(bases: int) -> InitialScales:
    """Scales one after another, each fitted to the residual of those before it."""

    def start(weights: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
        rest = np.asarray(weights, np.float64)
        scales = np.empty((len(rest), bases))
        for base in range(bases):
            scales[:, base] = _mean_magnitude(rest, costs)
            rest = rest - np.where(rest < 0, -1.0, 1.0) * scales[:, base, None]
        return scales

    return start


def _mean_magnitude(weights: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
    """The best scale of the signs, each weight counted by what moving it costs: (rows,)."""
    magnitudes = np.abs(weights)
    total = None if costs is None else costs.sum(axis=1)
    if total is None or not np.all(total):  # an output of which all inputs are dead
        return np.asarray(magnitudes.mean(axis=1))
    return np.asarray((costs * magnitudes).sum(axis=1) / total)
