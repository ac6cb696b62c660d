"""Tables of short vectors, and sums of several tables.

A weight may be cut into vectors of v neighbouring columns, each of which takes an entry of a table
of (count, v) values (product quantization), or be the sum of one entry from each of several tables
(residual quantization; with scalars and two values a table, ABC-Net's bases). Gong (2014) compares
both for networks.

`cluster_vectors` and `residual_tables` find the tables, `encode_vectors` the nearest entries. Not
here: codes that heed the inputs of a layer, with error feedback (see `vector_codes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.kmeans.levels import cluster

_SCORES: Final = 1 << 19  # distances held at once
_SAMPLE: Final = 1 << 17  # vectors that k-means++ draws from
_LEARNED: Final = 1 << 18  # vectors that most iterations look at
_LEARNED_EACH: Final = 1024  # and at least so many for each entry
_WHOLE: Final = 3  # last iterations, which look at all
_ROUNDS: Final = 8
_SUMS: Final = 1 << 12  # of stages, up to which all of them are tried
_TRIED: Final = 1 << 28  # sums times vectors, likewise


# ---------------------------------------------------------------------------- nearest entry


class Nearest:
    """Finds the nearest entry by one matrix product: that with the greatest w·(2·x·t − t²).

    Args:
        table: (count, v).
        has_weights: whether each component has a weight of its own.
        dtype: to calculate in.
    """

    def __init__(
        self, table: np.ndarray, *, has_weights: bool, dtype: type[np.floating] = np.float64
    ) -> None:
        self.table = np.asarray(table, np.float64)
        self.centre = self.table.mean(axis=0)  # less to cancel
        near = self.table - self.centre
        squares = np.square(near) if has_weights else np.square(near).sum(axis=1, keepdims=True)
        self.weights = np.concatenate([2 * near, -squares], axis=1).T.astype(dtype)
        self.dtype = dtype

    def codes(self, vectors: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """Of (n, v) vectors; `weights` (n, v), or None."""
        found = np.empty(len(vectors), np.intp)
        step = max(1, _SCORES // len(self.table))
        for first in range(0, len(vectors), step):
            at = slice(first, first + step)
            near = vectors[at] - self.centre
            if weights is None:
                features = np.ones((len(near), near.shape[1] + 1), self.dtype)
                features[:, :-1] = near
            else:
                own = weights[at]
                features = np.concatenate([near * own, own], axis=1).astype(self.dtype)
            (features @ self.weights).argmax(axis=1, out=found[at])
        return found


def sums(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Every sum of one entry from each table, (product of counts, v); the last varies fastest."""
    total = tables[0]
    for table in tables[1:]:
        # (so far, 1, v) + (count, v)
        total = (total[:, None] + table).reshape(-1, table.shape[1])
    return total


def encode_vectors(
    vectors: np.ndarray, table: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """The index of the nearest entry of each vector, uint8 or uint16.

    Args:
        vectors: (n, v).
        table: (count, v).
        weights: of each component, (n, v); weights of whole vectors, (n,), do not matter.
    """
    _check(vectors, table.shape[1])
    own = weights if weights is not None and weights.ndim == 2 else None
    codes = Nearest(table, has_weights=own is not None).codes(vectors, own)
    return codes.astype(code_type(len(table)))


def _costs(errors: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    if weights is None:
        return np.asarray(np.einsum("ij,ij->i", errors, errors))
    own = weights if weights.ndim == 2 else weights[:, None]
    return np.asarray((np.square(errors) * own).sum(axis=1))


def code_type(count: int) -> type[np.uint8] | type[np.uint16]:
    """The type of indices into a table of `count` entries."""
    return np.uint8 if count <= 1 << 8 else np.uint16


def _check(vectors: np.ndarray, length: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != length or not len(vectors):
        raise ValueError(f"Vectors of length {length} were expected, not shape {vectors.shape}.")
    for first in range(0, len(vectors), _SCORES):
        if not np.isfinite(vectors[first : first + _SCORES]).all():
            raise ValueError("Vectors to be clustered must be finite; there are others in them.")


# ---------------------------------------------------------------------------- one table


def cluster_vectors(
    vectors: np.ndarray,
    count: int,
    weights: np.ndarray | None = None,
    *,
    seed: int = 0,
    iterations: int = 25,
) -> np.ndarray:
    """A table for vectors: k-means++ and Lloyd's iteration, to a local optimum.

    Where there are many vectors, the first iterations look at a sample of them.

    Args:
        vectors: (n, v).
        count: entries of the table.
        weights: of the vectors, (n,), or of their components, (n, v); None: 1.
        seed: of the sample and of k-means++.
        iterations: at most, of each of the two parts.

    Returns:
        (count, v), float64; fewer entries where there are fewer distinct vectors with weight.

    Raises:
        ValueError: not all values are finite, or weights are negative.
    """
    if count < 1:
        raise ValueError(f"A table of {count} entries was asked for; it must have at least 1.")
    _check(vectors, vectors.shape[-1])
    _check_weights(weights, vectors)
    rng = np.random.default_rng(seed)
    first = _WeightedVectors.of(vectors, weights, max(_SAMPLE, 4 * count), rng)
    table = first.kmeans_plus_plus(count, rng)
    learned = _WeightedVectors.of(vectors, weights, max(_LEARNED, _LEARNED_EACH * count), rng)
    table = learned.lloyd(table, iterations)
    if len(learned.vectors) < len(vectors):
        table = _WeightedVectors(vectors, weights).lloyd(table, min(_WHOLE, iterations))
    return table


def _check_weights(weights: np.ndarray | None, vectors: np.ndarray) -> None:
    if weights is None:
        return
    if weights.shape not in (vectors.shape, vectors.shape[:1]):
        raise ValueError(
            f"Weights of vectors of shape {vectors.shape} must have that shape, or its first axis "
            f"alone, not {weights.shape}."
        )
    if not np.isfinite(weights).all() or np.any(weights < 0):
        raise ValueError("Weights of vectors must be finite, and not negative.")


@dataclass(frozen=True)
class _WeightedVectors:
    """Vectors (n, v) with their weights."""

    vectors: np.ndarray
    weights: np.ndarray | None

    @classmethod
    def of(
        cls, vectors: np.ndarray, weights: np.ndarray | None, size: int, rng: np.random.Generator
    ) -> _WeightedVectors:
        """Of all vectors that have weight, or of `size` of them."""
        if len(vectors) <= size:
            return cls(vectors, weights)
        at = np.sort(rng.choice(len(vectors), size, replace=False, shuffle=False))
        return cls(vectors[at], None if weights is None else weights[at])

    def kmeans_plus_plus(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Entries drawn by the squared distance of vectors from the entries before (k-means++)."""
        vectors = self.vectors.astype(np.float64)
        chance = np.ones(len(vectors)) if self.weights is None else _totals(self.weights)
        if not chance.any():
            return vectors[:1]
        cost = np.full(len(vectors), np.inf)
        entries: list[np.ndarray] = []
        while len(entries) < count and chance.any():
            running = chance.cumsum()
            drawn = (1 - rng.random()) * running[-1]
            entries.append(vectors[min(int(np.searchsorted(running, drawn)), len(vectors) - 1)])
            np.minimum(cost, _costs(vectors - entries[-1], self.weights), out=cost)
            chance = cost
        return np.array(entries)

    def lloyd(self, table: np.ndarray, iterations: int) -> np.ndarray:
        """Entries moved to the means of what is nearest; empty ones to the worst vectors."""
        per_component = self.weights is not None and self.weights.ndim == 2
        own = self.weights if per_component else None
        before: np.ndarray | None = None
        for _ in range(iterations):
            nearest = Nearest(table, has_weights=per_component, dtype=np.float32)
            codes = nearest.codes(self.vectors, own)
            if before is not None and np.array_equal(codes, before):
                break
            before = codes
            table = self.means(codes, table)
        return table

    def means(self, codes: np.ndarray, table: np.ndarray) -> np.ndarray:
        count = len(table)
        result = table.copy()
        for component in range(table.shape[1]):
            weight = self._weight(component)
            values = self.vectors[:, component]
            paid = values if weight is None else values * weight
            total = np.bincount(codes, weight, count)
            np.divide(
                np.bincount(codes, paid, count), total, out=result[:, component], where=total > 0
            )
        empty = np.flatnonzero(np.bincount(codes, minlength=count) == 0)
        if len(empty):
            costs = _costs(self.vectors - table[codes], self.weights)
            worst = np.argpartition(costs, -len(empty))[-len(empty) :]
            worst = worst[costs[worst] > 0]
            result[empty[: len(worst)]] = self.vectors[worst]
        return result

    def _weight(self, component: int) -> np.ndarray | None:
        if self.weights is None or self.weights.ndim == 1:
            return self.weights
        return np.asarray(self.weights[:, component])


def _totals(weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights.sum(axis=1) if weights.ndim == 2 else weights, np.float64)


# ---------------------------------------------------------------------------- several tables


@dataclass(frozen=True)
class Residual:
    """Tables whose entries are added.

    Attributes:
        tables: one of each stage, (count, v); (count,) for scalars.
        codes: (stages, n).
    """

    tables: tuple[np.ndarray, ...]
    codes: np.ndarray

    def values(self) -> np.ndarray:
        """The sums, (n, v) or (n,)."""
        parts = [table[own] for table, own in zip(self.tables, self.codes, strict=True)]
        return np.asarray(np.sum(parts, axis=0))


def residual_tables(
    values: np.ndarray,
    count: int,
    stages: int,
    weights: np.ndarray | None = None,
    *,
    seed: int = 0,
    rounds: int = _ROUNDS,
) -> Residual:
    """Tables of `count` entries each, whose sums come near `values`.

    Each stage is first fitted to what those before it leave. Then all entries are solved for
    together with the codes fixed, and each stage's codes chosen anew with the others fixed, in
    turn: neither can raise the error.

    Args:
        values: vectors (n, v), or scalars (n,).
        count: entries of each table.
        stages: how many tables.
        weights: as for `cluster_vectors`.
        seed: likewise.
        rounds: of the refinement, at most.
    """
    vectors = np.asarray(values, np.float64)
    scalar = vectors.ndim == 1
    vectors = vectors[:, None] if scalar else vectors
    left = vectors.copy()
    tables: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    for stage in range(stages):
        table = _stage_table(left, count, weights, seed + stage)
        own = encode_vectors(left, table, weights)
        tables.append(table)
        codes.append(own)
        left -= table[own]
    refined = _refine(vectors, Residual(tuple(tables), np.array(codes)), weights, rounds)
    if scalar:
        return Residual(tuple(table[:, 0] for table in refined.tables), refined.codes)
    return refined


def _stage_table(
    vectors: np.ndarray, count: int, weights: np.ndarray | None, seed: int
) -> np.ndarray:
    if vectors.shape[1] > 1:
        return cluster_vectors(vectors, count, weights, seed=seed)
    own = None if weights is None else weights.reshape(-1)
    return cluster(vectors[:, 0], count, own)[:, None]


def _refine(
    vectors: np.ndarray, residual: Residual, weights: np.ndarray | None, rounds: int
) -> Residual:
    best, lowest = residual, float(_costs(vectors - residual.values(), weights).sum())
    for _ in range(rounds):
        tried = Residual(_joint_tables(vectors, best, weights), best.codes)
        tried = _with_best_codes(vectors, tried, weights)
        now = float(_costs(vectors - tried.values(), weights).sum())
        if not now < lowest:
            break
        settled = now > lowest * (1 - 1e-4)
        best, lowest = tried, now
        if settled:
            break
    return best


def _joint_tables(
    vectors: np.ndarray, residual: Residual, weights: np.ndarray | None
) -> tuple[np.ndarray, ...]:
    """The best entries of all stages for the codes they have: least squares in each component."""
    sizes = [len(table) for table in residual.tables]
    edges = np.cumsum(sizes)[:-1]
    change = np.empty((sum(sizes), vectors.shape[1]))
    left = vectors - residual.values()
    shared = weights is None or weights.ndim == 1
    normal = _normal(residual.codes, sizes, weights) if shared else None
    for component in range(vectors.shape[1]):
        own = weights if shared else weights[:, component]  # type: ignore[index]
        matrix = _normal(residual.codes, sizes, own) if normal is None else normal
        error = left[:, component] if own is None else left[:, component] * own
        right = [
            np.bincount(codes, error, size)
            for codes, size in zip(residual.codes, sizes, strict=True)
        ]
        # the least change: what one stage adds another may take away
        change[:, component] = linalg.lstsq(
            matrix, np.concatenate(right), cond=1e-10, check_finite=False
        )[0]
    moved = np.split(change, edges)
    return tuple(table + own for table, own in zip(residual.tables, moved, strict=True))


def _normal(codes: np.ndarray, sizes: Sequence[int], weights: np.ndarray | None) -> np.ndarray:
    """How much weight uses each pair of entries together."""

    def pairs(a: int, b: int) -> np.ndarray:
        both = codes[a].astype(np.intp) * sizes[b] + codes[b]
        return np.bincount(both, weights, sizes[a] * sizes[b]).reshape(sizes[a], sizes[b])

    stages = range(len(sizes))
    return np.block([[pairs(a, b) for b in stages] for a in stages])


def _with_best_codes(
    vectors: np.ndarray, residual: Residual, weights: np.ndarray | None
) -> Residual:
    """The best codes of all stages; where there are too many sums, of each given the others."""
    sizes = tuple(len(table) for table in residual.tables)
    if prod(sizes) * len(vectors) <= _TRIED and prod(sizes) <= _SUMS:
        own = weights if weights is not None and weights.ndim == 2 else None
        nearest = Nearest(sums(residual.tables), has_weights=own is not None)
        found = np.unravel_index(nearest.codes(vectors, own), sizes)
        return Residual(residual.tables, np.array(found, residual.codes.dtype))
    codes = residual.codes.copy()
    left = vectors - residual.values()
    for stage, table in enumerate(residual.tables):
        left += table[codes[stage]]
        codes[stage] = encode_vectors(left, table, weights)
        left -= table[codes[stage]]
    return Residual(residual.tables, codes)
