"""Replace weights by powers of two, their negatives, and zero; INQ without retraining.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 80] x) => (float[2, 1] y)
        <float[80, 1] w = {1, 0.5, 0, -0.5, -1, 0.25, -0.25, 0, 1, 0.5, 0, -0.5, -1, 0.25, -0.25, 0,
                           1, 0.5, 0, -0.5, -1, 0.25, -0.25, 0, 1, 0.5, 0, -0.5, -1, 0.25, -0.25, 0,
                           1, 0.5, 0, -0.5, -1, 0.25, -0.25, 0, 1, 0.5, 0, -0.5, -1, 0.25, -0.25, 0,
                           1, 0.5, 0, -0.5, -1, 0.25, -0.25, 0, 1, 0.5, 0, -0.5, -1, 0.25, -0.25, 0,
                           1, 0.5, 0, -0.5, -1, 0.25, -0.25, 0, 1, 0.5, 0, -0.5, -1, 0.25, -0.25,
                           0}> {
        y = MatMul (x, w)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17, "onnxslim" : 1]>
    after (float[2, 80] x) => (float[2, 1] y)
        <uint8[10] codes_0 = {142, 142, 142, 142, 142, 142, 142, 142, 142, 142}, uint8[20] codes_1 =
         {27, 88, 27, 88, 27, 88, 27, 88, 27, 88, 27, 88, 27, 88, 27, 88, 27, 88, 27, 88}, float[8]
         table = {-1, -0.5, -0.25, 0, 0.25, 0.5, 1, 1}, int64[2] shape = {80, 1}> {
        w = onnxslim.Lookup2x4 (codes_0, codes_1, table, shape)
        y = MatMul (x, w)
    }
    ```
    Weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, and tables that Gather reads
    become codes into a table of 0 and ±2^k, for hardware that shifts instead of multiplying.
    onnxruntime computes the dense weight when it opens the model, so that the file shrinks and
    latency stays what it is.

Why it is correct:
    It is not exact. With n1 = ⌊log2(4·max|w| / 3)⌋ no weight lies above all values by more than
    half a step; n2 = n1 + 1 − 2^(bits−1)/2 leaves as many values as `bits` allow, one more for
    zero. With data the largest weights are rounded first, a share of them at a time, and the
    weights not yet rounded make up for the change of the output: with H = E[x xᵀ] of the layer's
    input and Q the rounded part, R minimises tr (W − Q − R) H (W − Q − R)ᵀ over the others, in
    closed form. The last share is rounded column by column, and later columns make up for earlier
    ones. A second solution rounds the whole weight as one share, which is often better with few
    values. In both, each weight is then chosen anew given all others, which can only lower the
    error; each output takes the better of the two solutions. Without data (H = I) no weight can
    make up for another, and each becomes the nearest value.

    With `finetune` the model is retrained as in INQ: from the original weights, of which a growing
    share, the largest first, is put on powers of two and stays (`codes=grow`).

Declines when:
    1. The weight is computed at run time, not of floating point, not finite, or a codebook
       already.
    2. A weight is shared with a layer that `only` and `skip` leave out.
    3. Codes and table would take as many bytes as the weight.
    4. The opset is below 10 and cannot be raised (see `raise-opset`): operators that unpack codes
       are missing.
    5. All its values are zero, or too small for powers of two in its type.

Fidelity:
    LOSSY. Zeros stay zero; shared weights stay shared; the mean output stays, by way of the bias.

Reference:
    Zhou et al., arXiv:1702.03044 (INQ), eq. 1 to 4 and the pruning-inspired partition. We differ:
    without training we solve for the rest of the weights between two shares, and no weight is fixed
    for good before the last sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, log2
from typing import ClassVar, Final

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.lossy.codebook_pass import Answer, CodebookPass, Layout, table_type
from onnxslim.lossy.codebooks import codebook_of_weight, nearest_codebook
from onnxslim.lossy.problems import Problem
from onnxslim.pipeline.options import Interval, OptionValue, interval, option
from onnxslim.solvers.feedback import round_with_feedback
from onnxslim.solvers.least_squares import refit
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.refinement import coordinate_descent
from onnxslim.solvers.tables import Table, round_to_nearest

_BITS: Final = Interval(2, 8)
_SWEEPS: Final = 2


@dataclass(frozen=True)
class QuantizePowerOfTwo(CodebookPass):
    """Replace weights by powers of two, their negatives, and zero; INQ without retraining."""

    name: ClassVar[str] = "quantize-power-of-two"
    trained_with: ClassVar[str] = "codes=grow:start=original"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,quantize-power-of-two": "powers of two and zero, 5 bits a weight",
        "quantize-power-of-two:bits=4": "seven magnitudes fewer",
    }
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"bits": (5, 4, 3)}
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {"bits": (8, 3)}

    bits: int = option(5, _BITS, "one for zero, the others for 2^(bits−1) values ±2^k")
    partitions: tuple[float, ...] = option(
        (0.5, 0.75, 0.875, 1.0),
        interval(0, 1, open_left=True),
        "shares of the weights, largest first, that are rounded after each step; the last is 1",
    )

    def __post_init__(self) -> None:
        """Check the shares against each other.

        Raises:
            UsageError: they do not rise, or do not end at 1.
        """
        super().__post_init__()
        rising = all(a < b for a, b in zip(self.partitions, self.partitions[1:], strict=False))
        if not rising or self.partitions[-1:] != (1.0,):
            given = "+".join(f"{share:g}" for share in self.partitions)
            raise UsageError(
                f"Option `partitions` of `{self.name}` must rise and end at 1; got {given}."
            )

    def layout(self, problem: Problem) -> Layout:
        """One table."""
        return Layout(2 ** (self.bits - 1) + 1, table=table_type(problem))

    def objection(self, problem: Problem) -> str | None:
        """That there are no powers of two for it."""
        return None if len(self._table(problem)) > 1 else "it has no values that are powers of two"

    def solve(self, problem: Problem, seed: int) -> Answer:
        """Share after share, the rest refitted."""
        table = self._table(problem)
        if not problem.has_data:
            return self.answer(problem, nearest_codebook(problem, table))
        codebook = Table.of(table)
        sides = zip(problem.target, problem.metrics, problem.weight != 0, strict=True)
        weight = np.stack([self._rounded(t, metric, codebook, own) for t, metric, own in sides])
        return self.answer(problem, codebook_of_weight(problem, weight, table.dtype))

    def _table(self, problem: Problem) -> np.ndarray:
        """0 and ±2^k for k from n2 to n1, ascending, as far as their type has them."""
        dtype = table_type(problem)
        largest = float(np.abs(problem.weight).max())
        least = round(log2(np.finfo(dtype).smallest_subnormal))
        if largest < 2.0**least:
            return np.zeros(1, dtype)
        high = floor(log2(4 * largest / 3))
        low = max(high + 1 - 2 ** (self.bits - 1) // 2, least)
        powers = 2.0 ** np.arange(low, high + 1)
        return np.concatenate([-powers[::-1], [0.0], powers]).astype(dtype)

    def _rounded(
        self, target: np.ndarray, metric: Metric, table: Table, mask: np.ndarray
    ) -> np.ndarray:
        """Values from `table` for one group; zeros of `mask` stay zero.

        In shares, and all at once: whichever is better, for each row.
        """
        target = refit(target, metric, mask)
        best = _at_once(target, metric, table, None if mask.all() else mask)
        best = coordinate_descent(target, best, metric, table, mask=mask, sweeps=_SWEEPS)
        if len(self.partitions) == 1:
            return best
        other = self._in_shares(target, metric, table, mask)
        other = coordinate_descent(target, other, metric, table, mask=mask, sweeps=_SWEEPS)
        better = metric.cost_by_row(target - other) < metric.cost_by_row(target - best)
        return np.where(better[:, None], other, best)

    def _in_shares(
        self, target: np.ndarray, metric: Metric, table: Table, mask: np.ndarray
    ) -> np.ndarray:
        fixed, rest, free = np.zeros_like(target), mask, target
        for share in self.partitions[:-1]:
            done = int(np.count_nonzero(mask & ~rest))
            chosen = _largest(free, rest, ceil(share * np.count_nonzero(mask)) - done)
            fixed = np.where(chosen, round_to_nearest(free, table, metric), fixed)
            rest = rest & ~chosen
            free = refit(target - fixed, metric, rest, start=free)
        return np.asarray(fixed + _at_once(free, metric, table, rest))


def _at_once(
    fitted: np.ndarray, metric: Metric, table: Table, mask: np.ndarray | None
) -> np.ndarray:
    return round_with_feedback(fitted, metric, table, mask=mask, is_fitted=True)


def _largest(weight: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """Which are the `count` largest magnitudes of those `among`."""
    magnitudes = np.where(among, np.abs(weight), -1.0).reshape(-1)
    chosen = np.zeros(magnitudes.shape, bool)
    chosen[np.argsort(-magnitudes, kind="stable")[:count]] = True
    return chosen.reshape(weight.shape)
