"""Round weights to fixed-point numbers: to nearest, stochastically, or with error feedback.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 64] x) => (float[2, 1] y)
        <float[64, 1] w = {1.5, 0.5, 0, -0.5, -2, 1.5, 0.5, 0, -0.5, -2, 1.5, 0.5, 0, -0.5, -2, 1.5,
                           0.5, 0, -0.5, -2, 1.5, 0.5, 0, -0.5, -2, 1.5, 0.5, 0, -0.5, -2, 1.5, 0.5,
                           0, -0.5, -2, 1.5, 0.5, 0, -0.5, -2, 1.5, 0.5, 0, -0.5, -2, 1.5, 0.5, 0,
                           -0.5, -2, 1.5, 0.5, 0, -0.5, -2, 1.5, 0.5, 0, -0.5, -2, 1.5, 0.5, 0,
                           -0.5}> {
        y = MatMul (x, w)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17, "onnxslim" : 1]>
    after (float[2, 64] x) => (float[2, 1] y)
        <uint8[22] codes = {94, 145, 51, 132, 8, 94, 145, 51, 132, 8, 94, 145, 51, 132, 8, 94, 145,
         51, 132, 8, 94, 1}, float[6] table = {-2, -0.5, 0, 0.5, 1.5, 1.5}, int64[2] shape = {64,
         1}> {
        w = onnxslim.Lookup6Padded (codes, table, shape)
        y = MatMul (x, w)
    }
    ```
    Weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, and tables that Gather reads
    become multiples of 2^−fl, in `il` bits before the point, the sign among them, and `fl` behind
    it. Weights of at most 256 different values are stored as codes into a table, others as 16-bit
    integers and a scale, behind `onnxslim.FixedPoint (codes, scale)`. Either way onnxruntime
    computes the dense weight when it opens the model, so that the file shrinks and latency stays
    what it is.

Why it is correct:
    It is not exact. Values are ε·q with ε = 2^−fl and whole q, saturated at −2^(il−1) and
    2^(il−1) − ε, so that rounding to nearest moves no weight by more than ε/2. Stochastic
    rounding takes ⌊w/ε⌋ + 1 with probability w/ε − ⌊w/ε⌋, else ⌊w/ε⌋: its mean is w.
    Feedback rounds one column of the weight after another, and the columns not rounded yet make up
    for the error in the output, E‖(W − Ŵ)x‖² = tr (W − Ŵ) H (W − Ŵ)ᵀ with H = E[x xᵀ] of the
    layer's input; then each weight is chosen anew given all others. Without data (H = I) feedback
    is rounding to nearest.

    With `finetune` a float that learns stands behind each weight. In training it is rounded up or
    down by chance (`rounding=stochastic`), so that small gradients count; what is stored is the
    nearest.

Declines when:
    1. The weight is computed at run time, not of floating point, not finite, or a codebook
       already.
    2. A weight is shared with a layer that `only` and `skip` leave out.
    3. Codes and table, or integers, would take as many bytes as the weight.
    4. The opset is below 10 (7 for integers and a scale) and cannot be raised (see `raise-opset`):
       operators are missing.
    5. With the `fl` given, the weight takes more than 16 bits; or it would become all zero.

Fidelity:
    LOSSY. Zeros stay zero; shared weights stay shared; the mean output stays, by way of the bias.

Reference:
    Gupta et al., arXiv:1502.02551, section 3; Frantar et al., arXiv:2210.17323 (GPTQ), for the
    feedback. We differ: weights only, of trained models, each with integer bits of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import ClassVar, Final

import numpy as np

from onnxslim.codebook.fixed_point import CODE_TYPE, LEAST_OPSET, FixedPointWeight
from onnxslim.errors import UsageError
from onnxslim.lossy.codebook_pass import Answer, CodebookPass, Layout, table_type
from onnxslim.lossy.codebooks import Codebook
from onnxslim.lossy.problems import Problem
from onnxslim.packing.radix import packed_bytes
from onnxslim.pipeline.options import Interval, one_of, option
from onnxslim.solvers.feedback import round_with_feedback
from onnxslim.solvers.least_squares import refit
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.refinement import coordinate_descent
from onnxslim.solvers.tables import IntegerGrid

_BITS: Final = Interval(2, 16)
_DEFAULT_BITS: Final = 8
_MAX_VALUES: Final = 256  # of a table
_SWEEPS: Final = 2
_CHUNK: Final = 1 << 20  # weights that are float64 at once, where there are no data


@dataclass(frozen=True)
class _Format:
    """<il, fl> of Gupta et al."""

    il: int
    fl: int

    @property
    def step(self) -> float:
        """ε."""
        return 2.0**-self.fl

    @property
    def low(self) -> int:
        """The least value, in steps."""
        return -(1 << (self.il + self.fl - 1))

    @property
    def high(self) -> int:
        """The largest value, in steps."""
        return -self.low - 1

    @property
    def grid(self) -> IntegerGrid:
        """As the solver takes it."""
        return IntegerGrid(np.full((1, 1), self.step), np.zeros((1, 1)), self.low, self.high)

    def __str__(self) -> str:
        """As in the paper."""
        return f"<{self.il}, {self.fl}>"


@dataclass(frozen=True)
class QuantizeFixedPoint(CodebookPass):
    """Round weights to fixed-point numbers: to nearest, stochastically, or with error feedback."""

    name: ClassVar[str] = "quantize-fixed-point"
    trained_with: ClassVar[str] = "rounding=stochastic"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,quantize-fixed-point:il=2:fl=6": "8 bits: 2 before the point, 6 after it",
        "quantize-fixed-point:fl=6:rounding=nearest": "integer bits as each layer needs them",
    }

    il: int | None = option(
        None,
        Interval(-30, 16),
        "integer bits, with the sign; default: the fewest that hold the largest weight",
    )
    fl: int | None = option(
        None, Interval(-14, 46), "fraction bits; default: what `il` leaves of 8 bits"
    )
    rounding: str = option(
        "feedback",
        one_of("nearest", "stochastic", "feedback"),
        "how weights are rounded; feedback needs data, and is nearest without",
    )

    def __post_init__(self) -> None:
        """Check options against each other.

        Raises:
            UsageError: `il` and `fl` do not make 2 to 16 bits.
        """
        super().__post_init__()
        if self.il is not None and self.fl is not None and not _BITS.accepts(self.il + self.fl):
            raise UsageError(
                f"Options `il` and `fl` of `{self.name}` must make {_BITS.low} to {_BITS.high} "
                f"bits; got {self.il} and {self.fl}."
            )

    def layout(self, problem: Problem) -> Layout:
        """One table."""
        form = self._format(problem)
        levels = min(2 ** (form.il + form.fl), _MAX_VALUES)
        return Layout(levels, table=table_type(problem))

    def least_opset(self, problem: Problem) -> int:
        """Lower where there are more values than a table has: integers and a scale need little."""
        form = self._format(problem)
        if form.il + form.fl > _DEFAULT_BITS:
            return LEAST_OPSET
        return super().least_opset(problem)

    def nbytes(self, problem: Problem) -> int:
        """A bit for each weight: how many values there are is known when it is rounded."""
        return packed_bytes(2, problem.layer.size)

    def objection(self, problem: Problem) -> str | None:
        """That the weight takes too many bits, or is too small for any."""
        form = self._format(problem)
        if not _BITS.accepts(form.il + form.fl):
            return f"it takes {form.il + form.fl} bits as {form}, and {_BITS.high:g} are the most"
        if float(np.abs(problem.weight).max()) < form.step / 2:
            return f"it would become all zero as {form}"
        return None

    def solve(self, problem: Problem, seed: int) -> Answer:
        """Round, then store as a table or as integers."""
        form = self._format(problem)
        steps = self._steps(problem, form, seed)  # (groups, rows, columns), int16
        weight = steps * form.step if problem.has_data else None
        error = _relative_error(problem, steps, form)
        words = f"as fixed-point numbers {form}"
        used = np.bincount(steps.reshape(-1).astype(np.int32) - form.low) > 0
        if np.count_nonzero(used) <= _MAX_VALUES:
            numbers = (np.cumsum(used) - 1).astype(np.uint8)
            table = (np.flatnonzero(used) + form.low) * form.step
            codes = numbers[steps.astype(np.int32) - form.low]
            stage = (codes, table.astype(table_type(problem)))
            return self.answer(problem, Codebook((stage,), error, weight), words)
        dtype = problem.layer.holder.dtype
        laid = problem.layer.laid_out(steps).astype(CODE_TYPE)
        stored = FixedPointWeight(laid, np.array(form.step, dtype))
        return Answer(stored, error, words, weight)

    def _format(self, problem: Problem) -> _Format:
        if self.il is not None:
            return _Format(self.il, _DEFAULT_BITS - self.il if self.fl is None else self.fl)
        low, high = float(problem.weight.min()), float(problem.weight.max())
        if self.fl is None:
            return _smallest_of_bits(low, high)
        form = _Format(int(_BITS.low) - self.fl, self.fl)
        while not form.low * form.step <= low <= high <= form.high * form.step:
            form = _Format(form.il + 1, form.fl)
        return form

    def _steps(self, problem: Problem, form: _Format, seed: int) -> np.ndarray:
        """The weight in whole steps."""
        rng = np.random.default_rng([seed, zlib.crc32(problem.name.encode())])
        weight = problem.weight
        steps = np.empty(weight.shape, CODE_TYPE)
        if not problem.has_data:
            height = max(1, _CHUNK // weight.shape[2])
            for group in range(len(weight)):
                for first in range(0, weight.shape[1], height):
                    at = np.s_[group, first : first + height]
                    steps[at] = self._rounded(weight[at].astype(np.float64), form, rng)
            return steps
        sides = zip(problem.target, problem.metrics, weight != 0, strict=True)
        for group, (target, metric, mask) in enumerate(sides):
            fitted = refit(target, metric, mask)
            if self.rounding == "feedback":
                steps[group] = np.rint(_fed(fitted, metric, form.grid, mask) / form.step)
            else:
                steps[group] = self._rounded(fitted, form, rng)
        return steps

    def _rounded(self, values: np.ndarray, form: _Format, rng: np.random.Generator) -> np.ndarray:
        """Each by itself, in steps; half a step goes up, as in the paper."""
        within = rng.random(values.shape) if self.rounding == "stochastic" else 0.5
        return np.clip(np.floor(values / form.step + within), form.low, form.high)


def _fed(fitted: np.ndarray, metric: Metric, grid: IntegerGrid, mask: np.ndarray) -> np.ndarray:
    own = None if mask.all() else mask
    weight = round_with_feedback(fitted, metric, grid, mask=own, is_fitted=True)
    return coordinate_descent(fitted, weight, metric, grid, mask=own, sweeps=_SWEEPS)


def _smallest_of_bits(low: float, high: float) -> _Format:
    """The format of 8 bits with the smallest step that holds `low` and `high`."""
    largest = max(-low, high)
    if largest == 0:
        return _Format(1, _DEFAULT_BITS - 1)
    il = int(np.clip(ceil(log2(largest)) + 1, -30, 16))
    form = _Format(il, _DEFAULT_BITS - il)
    if high > form.high * form.step:
        form = _Format(il + 1, _DEFAULT_BITS - il - 1)
    return form


def _relative_error(problem: Problem, steps: np.ndarray, form: _Format) -> float:
    if problem.has_data:
        return problem.relative_error(steps * form.step)
    error = whole = 0.0
    for weight, own in zip(problem.weight, steps, strict=True):
        for row, found in zip(weight, own, strict=True):
            exact = row.astype(np.float64)
            error += float(np.square(exact - found * form.step).sum())
            whole += float(np.square(exact).sum())
    return error / whole if whole else 0.0
