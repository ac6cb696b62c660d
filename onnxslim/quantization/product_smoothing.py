"""Smoothing of products that find their ranges at run time: alpha, group by group.

Products that read one tensor share the scales of its channels (see `smooth`), and with them alpha,
which says how much of the difference between channels goes into the weights. No one alpha suits all
groups. An error in what a group makes reaches the outputs by a factor that alpha does not change,
so the alpha with the least error there has the least effect on the outputs. The error is computed
from rows of the tensor, on samples to fit on, with the grids of both sides:

    Σ E‖X̂·Ŵ − X·W‖² / E‖X·W‖²        X̂ on the grid of its run, Ŵ on the grids of its columns

A Mul costs time, so it has to be worth it.

Owns: which groups are smoothed, and alpha. Not here: the scales and the edits (see `smooth`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxslim.analysis.absorption import LinearLayer
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.quantization.channel_scaling import scalable_layer
from onnxslim.quantization.clusters import clusters_of
from onnxslim.quantization.grid import U8, GridForm
from onnxslim.quantization.rules import ActivationRanges, KernelKind
from onnxslim.quantization.smooth import divide_input, divided_upstream, smoothing_scale
from onnxslim.records import Change
from onnxslim.services.calibration import Calibration
from onnxslim.services.progress import Progress

ALPHAS: Final = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
SAMPLES: Final = 128  # that are seen at most
FEWEST_SAMPLES: Final = 16
_ROWS: Final = 1024  # over all samples, on which errors are computed, about
_QUIET: Final = (
    0.5  # share of the median over channels of the largest |x|; smaller ones count as it
)
_WORTH: Final = 0.8  # a Mul must leave at most this share of the error
_COLUMNS: Final = 4096  # of a matrix that are worked on at once
Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ProductGroup:
    """Products that read one tensor.

    Attributes:
        tensor: what they read, its channels along the last axis.
        names: of the products, in the order of the graph.
        layers: the products.
    """

    tensor: gs.Tensor
    names: tuple[str, ...]
    layers: tuple[LinearLayer, ...]


def product_groups(rewriter: Rewriter, names: Collection[str]) -> list[ProductGroup]:
    """The groups of those of the dynamic products `names` whose weights can be scaled."""
    found: dict[gs.Tensor, list[tuple[str, LinearLayer]]] = {}
    for cluster in clusters_of(rewriter.main, ActivationRanges.DYNAMIC).all:
        if cluster.name in names and cluster.rule.kind is KernelKind.DYNAMIC:
            layer = scalable_layer(rewriter, cluster.node)
            if isinstance(layer, LinearLayer):
                found.setdefault(layer.node.inputs[layer.data], []).append((cluster.name, layer))
    return [
        ProductGroup(tensor, *(tuple(part) for part in zip(*own, strict=True)))
        for tensor, own in found.items()
    ]


@dataclass(frozen=True)
class _Seen:
    """What one run put into a tensor.

    Attributes:
        rows: some of its rows, (rows, channels).
        least, most: of each channel, over all rows, (channels,).
    """

    rows: Rows
    least: Rows
    most: Rows

    def rounded(self, scale: Rows) -> Rows:
        """The rows on the grid that the run finds for the tensor divided by `scale`."""
        low, high = (self.least / scale).min(initial=0.0), (self.most / scale).max(initial=0.0)
        return U8.over(float(low), float(high)).rounded(self.rows / scale) * scale


@dataclass
class ProductSmoothing:
    """Smooths the products of one model.

    Attributes:
        model: the model, its shapes inferred; it does not change.
        weights: the form of the grids of weights.
        calibration: the samples to fit on, not many more than `SAMPLES`.
        given: alpha of a group, by the name of its first product; None: it is searched.
        names: of the clusters that were smoothed last.
        alphas: what was found then, in the same form; 0 stands for a group that is not smoothed.
        changes: what was done then, for the report.
    """

    model: Model
    weights: GridForm
    calibration: Calibration
    progress: Progress
    given: Callable[[str], float] | None = None
    names: frozenset[str] = frozenset()
    alphas: dict[str, float] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    _seen: dict[str, list[_Seen]] = field(default_factory=dict, repr=False)
    _known: dict[tuple[str, ...], float] = field(default_factory=dict, repr=False)

    def smoothed(self, names: frozenset[str]) -> Model:
        """A copy of the model with the inputs of the dynamic products among `names` smoothed."""
        copy = self.model.clone()
        rewriter = Rewriter(copy.graph)
        groups = product_groups(rewriter, names)
        self._observe(groups)
        self.names, self.alphas = names, {}
        for group in self.progress.over("smoothing the inputs of", groups, "groups of products"):
            self.alphas[group.names[0]] = self._smooth(rewriter, group)
        done = rewriter.result()
        self.changes = done.changes
        copy.has_shapes = copy.has_shapes and not done.changed
        infer_shapes(copy)
        return copy

    def _observe(self, groups: Sequence[ProductGroup]) -> None:
        """See the inputs of groups that were not seen yet."""
        names = [str(group.tensor.name) for group in groups]
        missing = [name for name in names if name not in self._seen]
        if not missing:
            return
        copy = self.model.clone()
        tensors = {t.name: t for node in copy.graph.nodes for t in node.outputs}
        tensors.update((t.name, t) for t in copy.graph.inputs)
        inner = [name for name in missing if tensors[name] not in copy.graph.inputs]
        if not inner:
            return
        copy.graph.outputs = [tensors[name] for name in inner]
        # outliers are rare, so extremes come from all samples, and a few rows from each
        for sample in self.calibration.outputs(copy, together=1):
            for name in inner:
                values = sample.values[name]
                rows = values.reshape(-1, values.shape[-1])
                if len(rows):
                    step = -(-len(rows) // (_ROWS // SAMPLES))
                    seen = _Seen(rows[::step].copy(), rows.min(0), rows.max(0))
                    self._seen.setdefault(name, []).append(seen)

    def _smooth(self, rewriter: Rewriter, group: ProductGroup) -> float:
        """Smooth a group where that is worth it; returns alpha, 0 where it was not."""
        seen = self._seen.get(str(group.tensor.name))
        if not seen:
            return 0.0
        matrices = [_matrix(layer) for layer in group.layers]
        if group.names not in self._known:
            self._known[group.names] = self._best(rewriter, group, matrices, seen)
        alpha = self._known[group.names]
        scale = _scale(matrices, seen, alpha) if alpha else None
        if scale is None or divide_input(rewriter, group.tensor, group.layers, scale) is not None:
            return 0.0
        return alpha

    def _best(
        self,
        rewriter: Rewriter,
        group: ProductGroup,
        matrices: Sequence[Rows],
        seen: Sequence[_Seen],
    ) -> float:
        """The alpha of a group; 0 where it is not worth smoothing."""
        if self.given is not None:
            return self.given(group.names[0])
        judge = _GroupError(matrices, seen, self.weights)
        least, best, found = judge.error(np.ones(len(matrices[0]), np.float32)), 0.0, None
        plain = least
        for alpha in ALPHAS:
            scale = _scale(matrices, seen, alpha)
            if scale is not None and (error := judge.error(scale.astype(np.float32))) < least:
                least, best, found = error, alpha, scale
        if found is None:
            return 0.0
        is_free = divided_upstream(rewriter, group.tensor, len(group.layers), found)
        return best if is_free or least < _WORTH * plain else 0.0


def _scale(matrices: Sequence[Rows], seen: Sequence[_Seen], alpha: float) -> Array | None:
    """The scale of each channel of what `matrices` multiply; None where all are alike."""
    peaks = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    most = np.max([np.maximum(-item.least, item.most) for item in seen], axis=0)
    # a channel that was quiet on the samples need not be on other inputs, and divided by a tiny
    # scale it would widen the range of the whole tensor
    sizes = np.maximum(most, _QUIET * np.median(most))
    scale = smoothing_scale(sizes.astype(np.float64), peaks.astype(np.float64), alpha)
    return None if isinstance(scale, str) else scale


class _GroupError:
    """The error of a group of products for given scales of the channels of its input."""

    def __init__(self, matrices: Sequence[Rows], seen: Sequence[_Seen], form: GridForm) -> None:
        self._matrices, self._seen, self._form = matrices, seen, form
        rows = np.concatenate([item.rows for item in seen])
        self._exact = [rows @ matrix for matrix in matrices]

    def error(self, scale: Rows) -> float:
        """Relative squared error of what the products make, summed over the products."""
        rounded = np.concatenate([item.rounded(scale) for item in self._seen])
        total = 0.0
        for matrix, exact in zip(self._matrices, self._exact, strict=True):
            error = energy = 0.0
            for start in range(0, matrix.shape[1], _COLUMNS):  # a head has tens of thousands
                part = slice(start, start + _COLUMNS)
                scaled = matrix[:, part] * scale[:, None]
                grid = self._form.over(scaled.min(0), scaled.max(0), 1)
                found = rounded @ (grid.rounded(scaled) / scale[:, None])
                energy += float(np.square(exact[:, part]).sum())
                error += float(np.square(found - exact[:, part]).sum())
            total += error / energy if energy else 0.0
        return total


def _matrix(layer: LinearLayer) -> Rows:
    """The weight of a product, (inputs, outputs)."""
    weight = layer.weight_array
    return weight if layer.inputs_first else np.ascontiguousarray(weight.T)
