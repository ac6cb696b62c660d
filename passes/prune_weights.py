"""Set single weights to zero: magnitude, OBD, OBS, Wanda; per layer, over all layers, or n:m.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[1, 4] x) => (float[1, 2] y)
        <float[4, 2] w = {1, -6, 5, 2, -3, 8, 7, -4}> {
        y = MatMul (x, w)
    }
    ```
    becomes, with half of the weights removed,
    ```
    <opset_import: ["" : 17]>
    after (float[1, 4] x) => (float[1, 2] y)
        <float[4, 2] w = {0, -6, 5, 0, 0, 8, 7, 0}> {
        y = MatMul (x, w)
    }
    ```
    Weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, and tables that Gather reads.
    Zeros are left out of the file (`sparse_initializer`) where that takes fewer bytes. With
    calibration data biases make up for the change of the mean output.

Why it is correct:
    It is not exact. With x the layer's input, H = E[x xᵀ] and Ŵ the weight with zeros, the output
    moves by E‖(W − Ŵ)x‖² = tr (W − Ŵ) H (W − Ŵ)ᵀ. Removing w_j alone costs w_j²·H_jj (OBD); when
    all other weights of the row may move, w_j²/[H⁻¹]_jj (OBS). `obs` removes the cheapest in
    rounds and refits what is left in closed form, to the output of the original model on the
    inputs that the pruned layers before it now produce. Weights of inputs that are zero on all
    calibration samples cost nothing: `obs` removes all of them, even if that is more than `ratio`.

Declines when:
    1. The weight is computed at run time, not of floating point, or stored as a codebook.
    2. A weight is shared with a layer that `only` and `skip` leave out.
    3. `criterion` is one that needs data, and there are no calibration samples.
    4. Nothing would change: the weight has as many zeros already.

Fidelity:
    LOSSY. It prepares: zeros pay through a sparse initializer, `cluster-weights` or packing, and
    are judged together with what follows.

Reference:
    LeCun, Denker, Solla, Optimal Brain Damage (1990); Hassibi, Stork, Optimal Brain Surgeon
    (1993), eq. 5; Han et al., arXiv:1506.02626; Frantar, Alistarh, arXiv:2208.11580 (OBC) and
    arXiv:2301.00774 (SparseGPT); Sun et al., arXiv:2306.11695 (Wanda); Zhu, Gupta,
    arXiv:1710.01878 (the schedule of `steps`). We differ: thresholds are drawn over whole layers,
    targets are the original outputs on the new inputs, and saliencies of different layers are
    compared by what they do to the model's output, as measured.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.codebook.sparse import sparse_or_dense
from onnxslim.graph.ir import Constant, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.error_gain import sensitivity
from onnxslim.lossy.layer_pass import LayerPass, error_words, share_of
from onnxslim.lossy.problems import Problem, Problems
from onnxslim.pipeline.options import (
    Assigned,
    Interval,
    OptionValue,
    at_least,
    interval,
    one_of,
    option,
)
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.targets import Trait
from onnxslim.pipeline.trained_pass import cubic
from onnxslim.records import Fidelity, PassResult
from onnxslim.solvers.masks import (
    InMatrix,
    InRow,
    InRun,
    Saliency,
    ZeroScope,
    saliencies,
    share_out,
)
from onnxslim.solvers.surgeon import prune, surgeon

_RATIO_OF = Assigned(Interval(0.0, 1.0, open_right=True))
_PATTERN = re.compile(r"(\d+):(\d+)")
_NEEDS_DATA = (Saliency.OBD, Saliency.OBS, Saliency.WANDA)


@dataclass(frozen=True)
class _Pattern:
    """Constraint on the word of `pattern`: `none`, or n:m with 0 < n < m."""

    def accepts(self, value: str) -> bool:
        match = _PATTERN.fullmatch(value)
        return value == "none" or (match is not None and 0 < int(match[1]) < int(match[2]))

    def describe(self) -> str:
        return "`none` or 'n:m' with 0 < n < m, in quotes"

    def invalid(self) -> Iterator[str]:
        yield from ("2", "4:2", "0:4", "2:2")


@dataclass(frozen=True)
class PruneWeights(LayerPass):
    """Set single weights to zero: magnitude, OBD, OBS, Wanda; per layer, over all, or n:m."""

    name: ClassVar[str] = "prune-weights"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,prune-weights:ratio=0.8": "80 % zeros; pays once it is packed",
        "prune-weights:pattern='2:4'": "two of four neighbours are zero",
        "prune-weights:criterion=magnitude:scope=global": "half of all weights, the smallest ones",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    prepares: ClassVar[bool] = True
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"ratio": (0.5, 0.8, 0.95)}
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {"ratio": (0.0, 0.98)}
    strengths_of_layers: ClassVar[tuple[str, ...]] = ("ratio-of",)

    ratio: float = option(
        0.5, interval(0, 1, open_right=True), "share of the weights that is removed"
    )
    ratio_of: tuple[str, ...] = option(
        (), _RATIO_OF, "share for layers of their own, as 'PATTERN=SHARE'"
    )
    criterion: str = option(
        "auto",
        one_of("auto", *Saliency),
        "what a weight is worth; auto: obs with calibration samples, magnitude without",
    )
    scope: str = option(
        "layer", one_of("layer", "global"), "whether each layer loses `ratio`, or all together"
    )
    pattern: str = option("none", _Pattern(), "'n:m': of each m neighbours along the input n stay")
    steps: int = option(
        1, at_least(1), "in how many steps zeros are made, cubic schedule; finetune trains between"
    )

    def needs_calibration(self) -> str | None:
        """Most criteria look at the inputs of layers."""
        if self.criterion not in _NEEDS_DATA:
            return None
        return f"for criterion {self.criterion}; magnitude needs none"

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Prune every selected layer, as often as `steps` says."""
        rw = Rewriter(graph)
        problems = self.problems(rw, context)
        shares = self._shares(problems, context)
        changed: dict[str, Constant] = {}
        for step in range(1, self.steps + 1):
            progress = cubic(step / self.steps)
            last = step == self.steps
            for problem in problems:
                share = shares[problem.name] * progress
                if self._prune(problem, problems, share, context, last=last):
                    changed[problem.name] = problem.layer.holder
        if context.engine.takes(Trait.SPARSE):
            for holder in changed.values():
                rw.set_values(holder, sparse_or_dense(holder.values))
        return rw.result()

    # ----------------------------------------------------------------- in stages

    @property
    def stage_count(self) -> int:
        """See `TrainedPass`."""
        return self.steps

    def part(self, before: float, after: float) -> PruneWeights:
        """Zeros up to the share `after` of those that are asked for; a pattern comes last."""
        done = replace(super().part(before, after), steps=1)
        if after == 1:
            return done
        pairs = map(_RATIO_OF.split, self.ratio_of)
        ratio, ratio_of = self.ratio, tuple(f"{name}={share * after!r}" for name, share in pairs)
        if self.pattern != "none":
            kept, length = _numbers(self.pattern)
            ratio, ratio_of = 1 - kept / length, ()
        return replace(done, ratio=ratio * after, ratio_of=ratio_of, pattern="none")

    # ----------------------------------------------------------------- how much

    def _criterion(self, problem: Problem) -> Saliency:
        if self.criterion == "auto":
            return Saliency.OBS if problem.has_data else Saliency.MAGNITUDE
        return Saliency(self.criterion)

    def _shares(self, problems: Problems, context: Context) -> Mapping[str, float]:
        """The share that each weight loses, by the name of its first layer."""
        names = {
            shared.layers[0].name: tuple(context.names.all([la.name for la in shared.layers]))
            for shared in problems.weights
        }
        if self.scope == "layer" or self.pattern != "none":
            return {
                name: _RATIO_OF.find(self.ratio_of, own, self.ratio) for name, own in names.items()
            }
        free, shares = [], {}
        for problem in problems.scheduled(self.schedule.at_once()):
            share = _RATIO_OF.find(self.ratio_of, problem.layer_names, -1.0)
            if share >= 0:
                shares[problem.name] = share
            else:
                free.append((problem.name, self._worth(problem, context)))
        kept = _kept(sum(worth.size for _, worth in free), self.ratio)
        counts = share_out([worth for _, worth in free], kept)
        for (name, worth), count in zip(free, counts, strict=True):
            shares[name] = 1 - count / worth.size
        return shares

    def _worth(self, problem: Problem, context: Context) -> np.ndarray:
        """Saliencies in units of the model's output error, float32 to save memory."""
        criterion = self._criterion(problem)
        cost = _saliencies(problem, criterion, context.seed)
        if criterion in (Saliency.MAGNITUDE, Saliency.RANDOM) or not problem.has_data:
            return cost.astype(np.float32)
        trial = _pruned(problem, criterion, self.ratio, context.seed, thorough=False)
        assert problem.energy is not None
        scale = sensitivity(context, problem, trial) / max(problem.energy, 1e-300)
        return (cost * scale).astype(np.float32)

    # ----------------------------------------------------------------- which

    def _prune(
        self, problem: Problem, problems: Problems, share: float, context: Context, *, last: bool
    ) -> bool:
        """Remove `share` of a weight; returns whether that changes it."""
        criterion = self._criterion(problem)
        if self.pattern != "none":
            keep, length = _numbers(self.pattern)
            runs = [InRun(keep, length)] * problem.layer.groups
            weight = _with_budgets(problem, criterion, runs, context.seed)
        elif share > 0:
            weight = _pruned(problem, criterion, share, context.seed)
        else:
            return False
        before, zeros = problem.weight, int(np.count_nonzero(weight == 0))
        if np.array_equal(weight.astype(before.dtype), before):
            problems.rewriter.skip(node_label(problem.layer.node), "it has that many zeros already")
            return False
        kept = weight.size - zeros
        what = (
            f"kept {kept:,} of {weight.size:,} weights ({share_of(kept, weight.size)}) by "
            f"{criterion}{_dead_words(problem, weight)}; "
            f"{error_words(problem, problem.relative_error(weight))}"
        )
        problems.apply(problem, weight, what if last else f"step: {what}")
        return True


def _numbers(pattern: str) -> tuple[int, int]:
    """N and m of `n:m`."""
    kept, length = map(int, pattern.split(":"))
    return kept, length


def _kept(size: int, share: float) -> int:
    """How many of `size` weights stay when `share` of them goes, never fewer than that."""
    return size - floor(share * size + 1e-9 * size)  # 0.7·10 is 6.999...


def _dead_words(problem: Problem, weight: np.ndarray) -> str:
    """How many weights are gone because their inputs say nothing."""
    dead = np.stack([metric.dead for metric in problem.metrics])[:, None]  # (groups, 1, columns)
    gone = int(np.count_nonzero(dead & (weight == 0) & (problem.weight != 0)))
    if not gone:
        return ""
    return f" ({gone:,} of those that went have inputs that are zero on all calibration samples)"


def _own_seed(problem: Problem, seed: int) -> int:
    """A seed of the layer's own: layers of one shape should not lose the same weights."""
    return zlib.crc32(f"{seed} {problem.name}".encode())


def _saliencies(problem: Problem, criterion: Saliency, seed: int) -> np.ndarray:
    pairs, first = zip(problem.target, problem.metrics, strict=True), _own_seed(problem, seed)
    parts = [saliencies(t, m, criterion, first + group) for group, (t, m) in enumerate(pairs)]
    return np.stack(parts)


def _pruned(
    problem: Problem, criterion: Saliency, share: float, seed: int, *, thorough: bool = True
) -> np.ndarray:
    """The weight with `share` of it removed, groups competing with each other."""
    layer = problem.layer
    if criterion is Saliency.WANDA:  # by its definition each row keeps as many
        rows = [InRow(_kept(layer.columns, share))] * layer.groups
        return _with_budgets(problem, criterion, rows, seed)
    counts = [_kept(layer.size, share)]
    if layer.groups > 1:
        counts = share_out(list(_saliencies(problem, criterion, seed)), counts[0])
    if not thorough and criterion is Saliency.OBS:
        criterion = Saliency.OBD
    budgets = [InMatrix(count) for count in counts]
    return _with_budgets(problem, criterion, budgets, seed)


def _with_budgets(
    problem: Problem, criterion: Saliency, budgets: Sequence[ZeroScope], seed: int
) -> np.ndarray:
    parts, first = [], _own_seed(problem, seed)
    groups = zip(problem.target, problem.metrics, budgets, strict=True)
    for group, (target, metric, budget) in enumerate(groups):
        if criterion is Saliency.OBS:
            parts.append(surgeon(target, metric, budget))
        else:
            parts.append(prune(target, metric, budget, criterion, first + group))
    return np.stack(parts)
