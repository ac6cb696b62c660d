"""Replace weights by −α, 0 or α, for each output or for the whole weight.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 64] x) => (float[2, 1] y)
        <float[64, 1] w = {2, 0, 0, 2, -2, 0, 0, -2, 2, 0, 0, 2, -2, 0, 0, -2, 2, 0, 0, 2, -2, 0, 0,
                           -2, 2, 0, 0, 2, -2, 0, 0, -2, 2, 0, 0, 2, -2, 0, 0, -2, 2, 0, 0, 2, -2,
                           0, 0, -2, 2, 0, 0, 2, -2, 0, 0, -2, 2, 0, 0, 2, -2, 0, 0, -2}> {
        y = MatMul (x, w)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17, "onnxslim" : 1]>
    after (float[2, 64] x) => (float[2, 1] y)
        <uint8[13] codes = {68, 139, 115, 204, 174, 103, 127, 38, 68, 139, 115, 204, 12}, float[3]
         table = {-2, 0, 2}, int64[2] shape = {64, 1}> {
        w = onnxslim.Lookup3Padded (codes, table, shape)
        y = MatMul (x, w)
    }
    ```
    Weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, and tables that Gather reads
    become five to a byte, 1.6 bits each, and a table of three values. onnxruntime computes the
    dense weight when it opens the model, so that the file shrinks and latency stays what it is.

Why it is correct:
    It is not exact. A row w becomes α·s with s in {−1, 0, +1}. Without data, when the k largest
    magnitudes stay, α is their mean, and what is left of ‖w − α·s‖² is ‖w‖² − S_k²/k with S_k
    their sum: the best k is found by sorting, exactly. With data the error is
    (w − α·s)ᵀ H (w − α·s), H = E[x xᵀ] of the layer's input: each weight is weighted by the cost of
    moving it. Values are chosen column by column, and the columns still to come make up for the
    error of those already chosen. Then two steps alternate, each of which lowers the error: α is
    solved for by least squares, and values are chosen anew. With `symmetric=false` values are
    −α, 0 and β, and both scales are found in this way.

    With `finetune` the model is retrained as in TTQ: a float that learns stands behind each weight
    and decides which of the values it takes (`codes=move`), and the values learn too.

Declines when:
    1. The weight is computed at run time, not of floating point, not finite, or a codebook
       already.
    2. A weight is shared with a layer that `only` and `skip` leave out.
    3. Codes and tables would take as many bytes as the weight.
    4. The opset is below 10 (11 with a table for each output) and cannot be raised (see
       `raise-opset`): operators that unpack codes are missing.

Fidelity:
    LOSSY. Zeros stay zero; shared weights stay shared; the mean output stays, by way of the bias.

Reference:
    Li, Zhang, Liu, arXiv:1605.04711 (TWN), eq. 5 and 6; Zhu et al., arXiv:1612.01064 (TTQ), eq. 6.
    We differ: the threshold is the best one, not 0.7 of the mean; without training, values and
    scales fit the layer's output on calibration data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from onnxslim.codebook.weight import TableGranularity
from onnxslim.lossy.codebook_pass import Answer, CodebookPass, Layout, table_type
from onnxslim.lossy.codebooks import Codebook
from onnxslim.lossy.problems import Problem
from onnxslim.lossy.scaled_codebooks import ScaledTableSpec, find_scaled_codebook
from onnxslim.pipeline.options import one_of, option

_PER: Final = {"channel": TableGranularity.ROW, "tensor": TableGranularity.TENSOR}
_CHUNK: Final = 1 << 20  # magnitudes that are float64 at once


@dataclass(frozen=True)
class TernarizeWeights(CodebookPass):
    """Replace weights by −α, 0 or α, for each output or for the whole weight."""

    name: ClassVar[str] = "ternarize-weights"
    trained_with: ClassVar[str] = "codes=move"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,ternarize-weights": "-1, 0 and 1 times a scale for each channel",
        "ternarize-weights:per=tensor:only='fc*'": "one scale a layer, for some layers",
    }

    per: str = option("channel", one_of(*_PER), "what has a scale: each output, or the weight")
    symmetric: bool = option(default=True, help="one scale for both signs; false: one for each")

    def layout(self, problem: Problem) -> Layout:
        """Tables of three values."""
        return Layout(3, _PER[self.per], table=table_type(problem))

    def solve(self, problem: Problem, seed: int) -> Answer:
        """Values and scales."""
        signs = np.array([[-1.0], [0.0], [1.0]])
        factors = signs if self.symmetric else np.hstack([np.minimum(signs, 0), signs.clip(0)])
        start = _symmetric if self.symmetric else _asymmetric
        form = ScaledTableSpec(factors, start, _PER[self.per], is_solved=True)
        mask = problem.weight != 0
        found = find_scaled_codebook(
            problem, form, table_type(problem), None if mask.all() else mask
        )
        codes, tables = _ascending(problem, found.codes, found.scales @ factors.T + 0.0)
        table = tables.astype(table_type(problem))
        stage = (codes, table[0] if _PER[self.per] is TableGranularity.TENSOR else table)
        words = "as −α, 0, α" if self.symmetric else "as −α, 0, β"
        return self.answer(problem, Codebook((stage,), found.error, found.weight), words)


def _ascending(
    problem: Problem, codes: np.ndarray, tables: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each table in order, and codes for it: least squares may turn a sign."""
    order = np.argsort(tables, axis=1, kind="stable")
    rank = np.argsort(order, axis=1).astype(np.uint8)  # old code -> new code
    new = rank[0][codes] if len(rank) == 1 else _ranked(codes.reshape(-1, codes.shape[2]), rank)
    return new.reshape(codes.shape), np.take_along_axis(tables, order, axis=1)


def _ranked(codes: np.ndarray, rank: np.ndarray) -> np.ndarray:
    found = np.empty_like(codes)
    for code in range(rank.shape[1]):
        np.copyto(found, rank[:, code, None], where=codes == code)
    return found


# ---------------------------------------------------------------------------- scales


def _symmetric(weights: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
    return _best_scale(np.abs(weights), costs)[:, None]


def _asymmetric(weights: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
    sides = (np.maximum(-weights, 0), np.maximum(weights, 0))
    return np.stack([_best_scale(side, costs) for side in sides], axis=1)


def _best_scale(magnitudes: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
    """The α of each row for which Σ c·(m − α·t)², t in {0, 1}, is least: exact.

    With the k largest magnitudes kept, α is their mean and the sum falls by (Σ c·m)² / Σ c.
    """
    if costs is None:
        ordered, weighted = np.sort(magnitudes, axis=1)[:, ::-1], None
    else:
        order = np.argsort(-magnitudes, axis=1, kind="stable")
        ordered = np.take_along_axis(magnitudes, order, axis=1)
        weighted = np.take_along_axis(costs, order, axis=1)
    rows, columns = magnitudes.shape
    sums, counts, gain, scale = (np.zeros(rows) for _ in range(4))
    step = max(1, _CHUNK // rows)
    for first in range(0, columns, step):
        part = ordered[:, first : first + step].astype(np.float64)
        paid = np.ones_like(part) if weighted is None else weighted[:, first : first + step]
        total = sums[:, None] + np.cumsum(paid * part, axis=1)  # (rows, step)
        count = counts[:, None] + np.cumsum(paid, axis=1)
        gains = np.divide(np.square(total), count, out=np.zeros_like(total), where=count > 0)
        best = gains.argmax(axis=1)[:, None]
        found = np.take_along_axis(gains, best, axis=1)[:, 0]
        mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        mean = np.take_along_axis(mean, best, axis=1)[:, 0]
        scale = np.where(found > gain, mean, scale)
        gain = np.maximum(gain, found)
        sums, counts = total[:, -1], count[:, -1]
    return scale
