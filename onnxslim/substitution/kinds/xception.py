"""`xception`: a pointwise Conv, then one filter for each of its outputs.

Chollet, arXiv:1610.02357, section 1 (the extreme form of an Inception module, without an activation
between). Work before the strides is done at every position of the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.substitution.kinds.base import BlockKind, PositionGrid, Sizes
from onnxslim.substitution.patches.sketch import INPUT, BlockCell, Linear, Sketch, Values
from onnxslim.substitution.patches.terms import PatchMap, damped


class Xception(BlockKind):
    """A pointwise Conv, then a filter for each output."""

    name: ClassVar[str] = "xception"
    sizes: ClassVar[Mapping[str, tuple[float, ...]]] = {}

    def sketch(self, cell: BlockCell, sizes: Sizes) -> Sketch:
        """See `BlockKind`."""
        o = cell.outputs
        return Sketch(
            cell,
            (
                Linear("pointwise", INPUT, cell.channels, o),
                Linear("depthwise", "pointwise", o, o, o, axes=cell.every_axis, has_bias=True),
            ),
        )

    def weights(self, cell: BlockCell, sizes: Sizes) -> int:
        """C·O + O·k."""
        return cell.outputs * (cell.channels + cell.taps)

    def macs(self, cell: BlockCell, sizes: Sizes, grid: PositionGrid) -> int:
        """C·O at each position of the input, O·k at each of the output."""
        return cell.outputs * (cell.channels * grid.before + cell.taps * grid.after)

    def start(self, sketch: Sketch, original: PatchMap) -> Values:
        """The direction that carries most of each output by itself."""
        cell = sketch.cell
        flat = original.patches.reshape(-1, cell.channels).astype(np.float64)
        lower = np.linalg.cholesky(damped(flat.T @ flat / len(flat)))
        # (channels, channels)·(outputs, channels, taps): coordinates in which channels are white
        white = np.matmul(lower.T, original.weight)
        left, _, _ = np.linalg.svd(white, full_matrices=False)
        rows = linalg.solve_triangular(lower, left[:, :, 0].T, lower=True, trans="T").T
        return {"pointwise": _conv(rows, len(cell.kernel))}


def _conv(rows: np.ndarray, ndim: int) -> np.ndarray:
    return rows.reshape(1, *rows.shape, *[1] * ndim).astype(np.float32)
