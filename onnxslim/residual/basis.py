"""The basis in which a residual stream keeps its columns, and what it makes of a normalization.

A stream x of width d is kept as z = c·Qᵀx of width k, with orthonormal columns Q (d, k) that span
the directions in which normalized streams x̂ have most of their second moment. With ρ the share of
it that stays, c² = k/(ρ·d) lets z have the mean square of x, so that ε means the same:

    RMSNormalization     x̂ ≈ √(ρ·d/k)·Q·ẑ
    LayerNormalization   the same, where Q keeps the mean apart: Q·1ₖ = √(k/d)·1_d, so that z minus
                         its mean is c·Qᵀ of x minus its mean

What a normalization returns, γ·x̂ + β, is T·(ẑ + β') for a matrix T that the readers take up. ẑ has
no mean, so β' = 1ₖ and T = γ·√(ρ·d/k)·(Q − 1·1ᵀ/√(d·k)) + β·1ᵀ/k have it exactly: sums, zeros of a
Pad and averages behind a normalization need no case of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.linear_algebra import linalg


@dataclass(frozen=True)
class Basis:
    """Q and c.

    Attributes:
        rotation: Q, (d, k), float64.
        gain: c.
        is_centred: whether Q keeps the mean apart.
    """

    rotation: np.ndarray
    gain: float
    is_centred: bool

    @classmethod
    def of(cls, moments: np.ndarray, kept: int, *, is_centred: bool) -> Basis:
        """The best basis of `kept` columns for second moments of x̂, (d, d)."""
        width = len(moments)
        directions = kept - 1 if is_centred else kept
        symmetric = (moments + moments.T) / 2
        if is_centred:  # the mean is kept anyway: it comes last, whatever its moment
            symmetric = about_uniform(symmetric)
            symmetric -= np.ones((width, width)) * (np.trace(symmetric) + 1.0) / width
        vectors = linalg.eigh(symmetric, check_finite=False)[1][:, ::-1][:, :directions]
        rotation = np.asarray(vectors)
        if is_centred:
            rotation = vectors @ _without_mean(kept) + 1.0 / np.sqrt(width * kept)
        basis = cls(rotation, 1.0, is_centred)
        return cls(rotation, basis.gain_for(moments), is_centred)

    @property
    def width(self) -> int:
        """D."""
        return len(self.rotation)

    @property
    def kept(self) -> int:
        """K."""
        return int(self.rotation.shape[1])

    @property
    def encoder(self) -> np.ndarray:
        """(d, k): a row x becomes x times it."""
        return self.rotation * self.gain

    @property
    def decoder(self) -> np.ndarray:
        """(d, k): x is about it times z."""
        return self.rotation / self.gain

    def share(self, moments: np.ndarray) -> float:
        """ρ: the share of second moments of x̂, (d, d), that stays."""
        whole = float(np.trace(moments))
        kept = float(np.einsum("ij,ij->", self.rotation, moments @ self.rotation))
        return min(1.0, kept / whole) if whole > 0 and kept > 0 else 1.0

    def gain_for(self, moments: np.ndarray) -> float:
        """C that keeps the mean square where x̂ has these second moments."""
        return float(np.sqrt(self.kept / (self.share(moments) * self.width)))

    def normalized_decoder(
        self, scale: np.ndarray, bias: np.ndarray | None, moments: np.ndarray
    ) -> np.ndarray:
        """T, (copies·d, copies·k), of a normalization of `copies` streams in a row.

        Args:
            scale: γ, (copies·d,).
            bias: β, of the same size; with it, β' is 1 everywhere.
            moments: second moments of x̂, (d, d), over all copies.
        """
        copies = len(scale) // self.width
        blocks = np.kron(np.eye(copies), self.rotation / self.gain_for(moments))
        count = blocks.shape[1]
        if self.is_centred:
            blocks -= blocks.sum(axis=1, keepdims=True) / count  # a mean that ẑ has not
        found = scale[:, None] * blocks
        if bias is not None:
            found = found + bias[:, None] / count
        return np.asarray(found)


def about_uniform(moments: np.ndarray) -> np.ndarray:
    """Second moments of vectors without their mean over the channels."""
    rows = moments - moments.mean(axis=0, keepdims=True)
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))


def _without_mean(size: int) -> np.ndarray:
    """Orthonormal rows without a mean, (size − 1, size): Helmert's."""
    rows = np.tril(np.ones((size - 1, size)))
    place = np.arange(size - 1)
    rows[place, place + 1] = -(place + 1.0)
    return np.asarray(rows / np.sqrt((place + 1.0) * (place + 2.0))[:, None])
