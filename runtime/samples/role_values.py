"""Values for the inputs to which a graph gives a role: choices, indices, masks, pixels, ...

Owns: which values are drawn for each role. Not here: how roles are found (see
`onnxslim.analysis.input_roles`), and inputs without one (see `seeded`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from onnxslim.analysis.input_demands import bound_size
from onnxslim.analysis.input_roles import InputRole, RoleKind

_KEPT: Final = 0.75  # share of ones in a mask
_MIN_POSITIVE: Final = 0.01  # the least positive number: a logarithm of less reaches far
WORDS: Final = {
    RoleKind.CHOICE: "choices",
    RoleKind.INDEX: "indices",
    RoleKind.MASK: "masks",
    RoleKind.POSITIVE: "positive numbers",
    RoleKind.PIXELS: "pixels",
}


def draw_in_role(
    role: InputRole,
    dtype: np.dtype,
    shape: tuple[int, ...],
    symbols: Mapping[str, int],
    rng: np.random.Generator,
    *,
    plain: bool = False,
) -> np.ndarray | None:
    """Values that make sense in `role`; None where no index is known to be valid.

    Args:
        role: the role of the input.
        dtype: its type.
        shape: the shape to draw.
        symbols: sizes of the symbols that bounds of indices depend on.
        rng: the source of chance.
        plain: whether a mask keeps everything, and a choice is none of those that the graph names.
    """
    if role.kind is RoleKind.MASK:
        return _mask(dtype, shape, rng, plain=plain)
    if role.kind is RoleKind.POSITIVE:
        return np.asarray(rng.uniform(_MIN_POSITIVE, 1, shape)).astype(dtype)
    if role.kind is RoleKind.PIXELS:
        return np.asarray(rng.integers(0, 256, shape)).astype(dtype)
    if role.kind is RoleKind.CHOICE:
        return np.full(shape, _unnamed(role) if plain else rng.choice(role.choices)).astype(dtype)
    tops = [top for top in (bound_size(top, symbols) for top in role.tops) if top is not None]
    limit = int(np.iinfo(dtype).max) + 1
    if not tops or min(tops) <= role.low:
        return None
    return np.asarray(rng.integers(role.low, min([*tops, limit]), shape)).astype(dtype)


def _unnamed(role: InputRole) -> int:
    """A value that is held against nothing: half of one that is, as with sample rates."""
    halves = (choice // 2 for choice in role.choices)
    return next((half for half in halves if half not in role.choices), max(role.choices) + 1)


def _mask(
    dtype: np.dtype, shape: tuple[int, ...], rng: np.random.Generator, *, plain: bool
) -> np.ndarray:
    """Zeros and ones, with a one at the start of each row: a softmax over nothing is NaN."""
    kept = np.asarray(rng.random(shape) < _KEPT) | plain
    if shape and shape[-1] > 1:
        kept[..., 0] = True
    return kept.astype(dtype)
