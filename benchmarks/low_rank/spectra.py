"""Networks with seeded weights whose spectra decay.

The light graphs have random weights, whose singular values hardly decay: no low rank there is. Here
the matrix of every Conv and dense layer with 16 outputs or more keeps its size and its Frobenius
norm, and its singular values become s_i ∝ i^−a, between random singular vectors.

Exponents as measured on trained networks (`benchmarks.low_rank spectra`; least squares of log s_i
against log i between 5 and 80 % of the ranks): medians of 0.25 (VGG-like, Conv) to 0.88 (PP-OCRv4,
Conv), and 0.43 to 0.58 of dense layers. `STEEP` is for what a network would have to be like for its
dense layers to keep 99 % of the energy of their weights in a tenth of their ranks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.io.model import Model

Array = npt.NDArray[np.float64]

TRAINED: Final = {"conv": 0.5, "dense": 0.55}
STEEP: Final = {"conv": 0.5, "dense": 1.0}
_MIN: Final = 16


def with_decay(source: Path, target: Path, exponents: Mapping[str, float]) -> None:
    """Write `source` with decaying spectra to `target`."""
    model = Model.load(source)
    for layer in weight_layers(model.graph)[0]:
        weight = np.asarray(layer.canonical(), np.float64)
        if min(weight.shape[1:]) < _MIN:
            continue
        rng = np.random.default_rng(zlib.crc32(layer.name.encode()))
        exponent = exponents[kind_of(layer)]
        layer.holder.values = layer.restored(
            np.stack([_decaying(matrix, exponent, rng) for matrix in weight])
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(model.to_bytes())


def kind_of(layer: WeightLayer) -> str:
    """`conv` or `dense`."""
    return "conv" if isinstance(layer.unfolding, ConvPatches) else "dense"


def _decaying(matrix: Array, exponent: float, rng: np.random.Generator) -> Array:
    """A matrix of the same norm with singular values ∝ i^−exponent."""
    rows, columns = matrix.shape
    rank = min(rows, columns)
    left = np.linalg.qr(rng.standard_normal((rows, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, rank)))[0]
    values = np.arange(1, rank + 1.0) ** -exponent
    values *= np.linalg.norm(matrix) / np.linalg.norm(values)
    return np.asarray((left * values) @ right.T)


def spectra(file: Path) -> Iterator[tuple[str, str, float, float]]:
    """Layer, kind, exponent, and the share of ranks that holds 99 % of the energy."""
    for layer in weight_layers(Model.load(file).graph)[0]:
        weight = np.asarray(layer.canonical(), np.float64)
        if layer.groups > 1 or min(weight.shape[1:]) < 2 * _MIN:
            continue
        values = np.linalg.svd(weight[0], compute_uv=False)
        count = len(values)
        part = slice(max(1, count // 20), int(0.8 * count))
        place = np.log(np.arange(1, count + 1))
        slope = np.polyfit(place[part], np.log(values[part] + 1e-12), 1)[0]
        energy = np.cumsum(values**2) / np.sum(values**2)
        needed = int(np.searchsorted(energy, 0.99)) + 1
        yield layer.name, kind_of(layer), float(-slope), needed / count


__all__ = ["STEEP", "TRAINED", "kind_of", "spectra", "with_decay"]
