"""Masks: which weights stay, by the cost of removing each of them.

A saliency is the cost of removing one weight, in units of mean squared output error, so that
weights of different layers can be compared:

    magnitude  w²                  H = I
    obd        w²·H_jj             the others stay (LeCun 1990: half the second derivative is H_jj)
    wanda      w²·H_jj             the same number; by its definition compared within a row
    obs        w²/[H⁻¹]_jj         the others of the row move to make up for it (Hassibi 1993)
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxslim.solvers.metric import Metric


class Saliency(enum.StrEnum):
    """How the cost of removing a weight is estimated."""

    MAGNITUDE = "magnitude"
    OBD = "obd"
    OBS = "obs"
    WANDA = "wanda"
    RANDOM = "random"


@dataclass(frozen=True)
class InMatrix:
    """At most `keep` weights of the whole matrix stay."""

    keep: int


@dataclass(frozen=True)
class InRow:
    """At most `keep` weights of each row stay."""

    keep: int


@dataclass(frozen=True)
class InRun:
    """At most `keep` of each `length` neighbours in a row stay (n:m)."""

    keep: int
    length: int


ZeroScope = InMatrix | InRow | InRun


def saliencies(
    weight: np.ndarray, metric: Metric, criterion: Saliency, seed: int = 0
) -> np.ndarray:
    """What removing each weight costs; zero for the weights of dead inputs."""
    weight = np.asarray(weight, np.float64)
    if criterion is Saliency.RANDOM:
        return np.asarray(np.random.default_rng(seed).random(weight.shape))
    if criterion is Saliency.MAGNITUDE:
        return np.asarray(np.square(weight))
    if criterion is Saliency.OBS:
        cost = np.square(weight) / metric.inverse_diagonal
        return np.asarray(np.where(metric.dead, 0.0, cost))
    return np.asarray(np.square(weight) * metric.diagonal)


def mask_of(saliency: np.ndarray, budget: ZeroScope) -> np.ndarray:
    """The most salient weights that `budget` allows, as booleans."""
    if isinstance(budget, InMatrix):
        return largest(saliency.reshape(1, -1), budget.keep).reshape(saliency.shape)
    if isinstance(budget, InRow):
        return largest(saliency, budget.keep)
    rows, columns = saliency.shape
    missing = -columns % budget.length
    # (rows, columns) -> (rows·runs, length); what is added at the end never stays
    padded = np.pad(saliency, ((0, 0), (0, missing)), constant_values=-np.inf)
    kept = largest(padded.reshape(-1, budget.length), budget.keep)
    return kept.reshape(rows, columns + missing)[:, :columns]


def share_out(saliencies: Sequence[np.ndarray], keep: int) -> list[int]:
    """How many weights each matrix keeps when the `keep` most salient of all of them stay."""
    if keep <= 0:
        return [0] * len(saliencies)
    everything = np.concatenate([item.reshape(-1) for item in saliencies])
    if keep >= everything.size:
        return [item.size for item in saliencies]
    mask = largest(everything[None], keep)[0]
    edges = np.cumsum([item.size for item in saliencies])[:-1]
    return [int(part.sum()) for part in np.split(mask, edges)]


def largest(values: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` largest of each row; never −inf."""
    columns = values.shape[1]
    if keep >= columns:
        return values > -np.inf
    mask = np.zeros(values.shape, bool)
    if keep > 0:
        chosen = np.argpartition(values, columns - keep, axis=1)[:, columns - keep :]
        np.put_along_axis(mask, chosen, values=True, axis=1)
    return mask & (values > -np.inf)


def largest_of_each(values: np.ndarray, keeps: np.ndarray) -> np.ndarray:
    """As `_largest`, with another number for each row."""
    mask = np.zeros(values.shape, bool)
    for keep in np.unique(keeps):
        rows = keeps == keep
        mask[rows] = largest(values[rows], int(keep))
    return mask
