"""Which positions of a batch of texts only fill it up: no figure of an output counts them.

Owns: reading the mask that was fed. Not here: which input is the mask (see
`analysis.token_inputs`).
"""

from __future__ import annotations

import numpy as np

from onnxslim.analysis.token_inputs import PaddingMask
from onnxslim.runtime.session import Feeds


def positions_that_count(mask: PaddingMask | None, feeds: Feeds) -> np.ndarray | None:
    """Which positions (N, L) of the tokens hold one; None where all do, or nothing says."""
    if mask is None or mask.name not in feeds or mask.tokens not in feeds:
        return None
    given, length = np.asarray(feeds[mask.name]), np.shape(feeds[mask.tokens])[-1]
    before = 0 if mask.cache is None else np.shape(feeds[mask.cache[0]])[mask.cache[1]]
    if given.shape != (*np.shape(feeds[mask.tokens])[:1], before + length):
        return None
    counts = np.asarray(given[:, before:] != mask.left_out)
    return None if counts.all() else counts


def split_rows(
    array: np.ndarray, counts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows (K, D, ...) of an output (N, L, D, ...) at positions that count, and the others.

    An output that has no row for each position counts whole, and there are no others.
    """
    if counts is None or array.ndim < 3 or array.shape[:2] != counts.shape:
        return array, None
    return array[counts], array[~counts]
