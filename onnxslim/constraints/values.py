"""What the numbers of a constant show: zeros that stay, few values, short binary numbers.

Nothing is known of how a file was made. A share of exact zeros, or a few values that all elements
take, do not come about by training in floating point: an earlier step chose them.
"""

from __future__ import annotations

from typing import Final

import numpy as np

_ZEROS: Final = 0.01  # share of exact zeros from which they are no chance
MAX_VALUES: Final = 256
MIN_REPEATS: Final = 2
"""How often a value of a table is used on average, at least: floats that learned hardly agree."""
_NARROW_REPEATS: Final = 4  # of types of 16 bits, in which they do at times
_LEAST: Final = 8  # elements of a weight with few values
_BITS: Final = {2: 8, 4: 16, 8: 16}  # of a short number, by bytes of the type
_MANTISSA: Final = 53
_PEAK: Final = 4  # times that zero is more frequent than codes beside it where it was chosen
_MASKED: Final = 100  # taken off a score, it leaves nothing behind a softmax
_ROWS: Final = 8  # positions from which a sinusoid can be told
_LOOK: Final = 64  # positions that are looked at first
_RESIDUE: Final = 1e-4


def zeros_stay(values: np.ndarray) -> bool:
    """Whether exact zeros among floats are there by choice: some, but not all, and no single one.

    All zeros are a weight that was not trained yet.
    """
    zeros = values.size - int(np.count_nonzero(values))
    return zeros > 1 and _ZEROS * values.size <= zeros < values.size


def zero_code_stays(codes: np.ndarray, zero: np.ndarray | int) -> bool:
    """Whether integer codes stand for zero far more often than rounding to a grid would make them.

    Weights that are rounded to nearest give zero hardly more often than the codes beside it.
    """
    steps = codes.astype(np.int32) - zero
    zeros = int(np.count_nonzero(steps == 0))
    beside = max(int(np.count_nonzero(steps == 1)), int(np.count_nonzero(steps == -1)))
    return zeros < steps.size and zeros > max(_PEAK * beside, 1)


def zeros_stand_out(codes: np.ndarray, is_zero: np.ndarray) -> bool:
    """Whether codes of zero are far more frequent than any other code.

    Args:
        codes: indices of values, not negative.
        is_zero: whether each of them stands for zero, of the same shape.
    """
    zeros = int(np.count_nonzero(is_zero))
    counts = np.bincount(codes[~is_zero].astype(np.int64).reshape(-1))
    return zeros < codes.size and zeros > _PEAK * int(counts.max(initial=0))


def few_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The values of a constant that takes few, and the index of each element; None for others.

    Returns:
        values (L,), ascending, and indices of the shape of `values`, int32. One value that all
        elements have is no table: such is a weight before training.
    """
    if values.size < _LEAST:
        return None
    repeats = MIN_REPEATS if values.dtype.itemsize > 2 else _NARROW_REPEATS
    flat = np.ascontiguousarray(values, values.dtype.newbyteorder("=")).reshape(-1)
    # most weights show within a few elements that they take many values
    if np.unique(flat[: 4 * MAX_VALUES]).size > MAX_VALUES:
        return None
    table, codes = np.unique(flat, return_inverse=True)
    if not 2 <= table.size <= MAX_VALUES or table.size * repeats > flat.size:
        return None
    if not np.isfinite(table.astype(np.float64)).all():
        return None
    if np.count_nonzero(table) * repeats > np.count_nonzero(flat):  # few elements, not few values
        return None
    return table, codes.reshape(values.shape).astype(np.int32)


def on_levels(table: np.ndarray) -> bool:
    """Whether the values of a table are ones that an earlier step took from a fixed set.

    These are powers of two, and fixed-point numbers: to move them would leave the set.
    """
    found = table[table != 0]
    if found.size < 2:
        return False
    mantissas = np.frexp(np.abs(found.astype(np.float64)))[0]
    return bool((mantissas == 0.5).all()) or are_short(found)


def are_short(values: np.ndarray) -> bool:
    """Whether all values are multiples of one power of two, by integers of few bits.

    So are counts, strides, corners of cells and masks; floats that were trained use all bits.
    """
    found = values.reshape(-1).astype(np.float64)
    found = found[found != 0]
    if not found.size or not np.isfinite(found).all():
        return False
    mantissas, exponents = np.frexp(np.abs(found))
    whole = (mantissas * 2.0**_MANTISSA).astype(np.int64)
    lowest = whole & -whole  # the last bit that is set
    steps = exponents - _MANTISSA + np.log2(lowest.astype(np.float64)).astype(np.int64)
    bits = int(exponents.max()) - int(steps.min())
    return bits < _BITS.get(values.dtype.itemsize, max(_BITS.values()))


def is_power_of_two(values: np.ndarray) -> bool:
    """Whether all values are powers of two."""
    return bool((np.frexp(values.astype(np.float64))[0] == 0.5).all())


def is_mask(values: np.ndarray) -> bool:
    """Whether values leave out what they are added to: not finite, or zero and very negative."""
    if not np.isfinite(values).all():
        return True
    low = values <= -_MASKED
    return bool(low.any() and (low | (values == 0)).all())


def are_sinusoids(values: np.ndarray) -> bool:
    """Whether each column (…, positions, columns) is a sinusoid of the position.

    For x[t] = a·cos(w·t + p), x[t − 1] + x[t + 1] = 2·cos(w)·x[t], whatever a, w and p are; trained
    tables of positions are far from any such rule.
    """
    if values.ndim < 2 or values.shape[-2] < _ROWS:
        return False
    if values.shape[-2] > _LOOK and not are_sinusoids(values[..., :_LOOK, :]):
        return False
    x = values.astype(np.float64).reshape(-1, *values.shape[-2:])
    if not np.isfinite(x).all():
        return False
    inner, both = x[:, 1:-1], x[:, :-2] + x[:, 2:]
    energy = np.square(inner).sum(1)
    factor = np.divide((inner * both).sum(1), energy, out=np.zeros_like(energy), where=energy > 0)
    rest = np.square(both - factor[:, None] * inner).sum(1)
    return bool((rest <= _RESIDUE * np.maximum(np.square(both).sum(1), energy)).all())
