"""Changes of pictures that leave what they show: shift, flip, crop, noise, mixup.

The teacher says what each changed picture is, so no label has to stay true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from onnxslim.errors import UsageError

_SHIFT: Final = 0.125  # of the size, at most
_CROP: Final = 0.2  # of a side is left out, at most
_LEAST_SIDE: Final = 0.1  # of what is kept
_NOISE: Final = 0.05  # of the spread of a picture
_MIX: Final = 0.4  # of the beta distribution of shares (Zhang et al. 2017, arXiv:1710.09412)
_PICTURE_RANK: Final = 4  # (N, C, H, W)
Random = np.random.Generator
Change = Callable[[np.ndarray, Random, float], np.ndarray]


def augmented(
    feeds: Mapping[str, np.ndarray], names: Sequence[str], rng: Random, strength: float = 1.0
) -> dict[str, np.ndarray]:
    """Inputs with all pictures (N, C, H, W) changed, each in its own way.

    Args:
        feeds: inputs by name.
        names: of changes, one after the other.
        rng: what they draw from.
        strength: by which the most that a change does is multiplied.

    Raises:
        UsageError: no input is a batch of pictures.
    """
    pictures = [n for n, a in feeds.items() if a.ndim == _PICTURE_RANK and a.dtype.kind == "f"]
    if not pictures:
        shapes = ", ".join(f"`{name}` {list(array.shape)}" for name, array in feeds.items())
        raise UsageError(f"`augment` changes pictures (N, C, H, W); the inputs are {shapes}.")
    changed = dict(feeds)
    for name in pictures:
        array = np.array(feeds[name])
        for word in names:
            array = AUGMENTATIONS[word](array, rng, strength)
        changed[name] = np.ascontiguousarray(array, feeds[name].dtype)
    return changed


def _shift(pictures: np.ndarray, rng: Random, strength: float) -> np.ndarray:
    """Move each picture, by a pixel at least; what enters is the border, repeated."""
    count, channels, *sides = pictures.shape
    rows, columns = (  # (N, H), (N, W)
        np.clip(np.arange(size) + _moves(_SHIFT * strength * size, count, rng), 0, size - 1)
        for size in sides
    )
    every = np.arange(count)[:, None, None, None], np.arange(channels)[:, None, None]
    return pictures[*every, rows[:, None, :, None], columns[:, None, None, :]]


def _moves(most: float, count: int, rng: Random) -> np.ndarray:
    """By how many pixels each picture moves, (N, 1)."""
    whole = max(round(most), 1)
    return rng.integers(-whole, whole + 1, (count, 1))


def _flip(pictures: np.ndarray, rng: Random, strength: float) -> np.ndarray:
    """Mirror half of the pictures from left to right, whatever the strength."""
    chosen = rng.random(len(pictures)) < 0.5
    return np.where(chosen[:, None, None, None], pictures[..., ::-1], pictures)


def _crop(pictures: np.ndarray, rng: Random, strength: float) -> np.ndarray:
    """Enlarge a part of each picture to the whole, by its nearest pixels."""
    made = np.empty_like(pictures)
    least = max(1 - _CROP * strength, _LEAST_SIDE)
    for number, picture in enumerate(pictures):
        share = rng.uniform(least, 1)
        places = []
        for size in picture.shape[1:]:
            start = rng.uniform(0, (1 - share) * size)
            places.append(
                np.clip((start + (np.arange(size) + 0.5) * share).astype(int), 0, size - 1)
            )
        made[number] = picture[:, places[0][:, None], places[1]]
    return made


def _noise(pictures: np.ndarray, rng: Random, strength: float) -> np.ndarray:
    """Add white noise."""
    spread = pictures.std(axis=(1, 2, 3), keepdims=True)
    return pictures + _NOISE * strength * spread * rng.standard_normal(pictures.shape)


def _mixup(pictures: np.ndarray, rng: Random, strength: float) -> np.ndarray:
    """Lay another picture of the batch over each."""
    share = rng.beta(_MIX * strength, _MIX * strength, (len(pictures), 1, 1, 1))
    return share * pictures + (1 - share) * pictures[rng.permutation(len(pictures))]


AUGMENTATIONS: Final[Mapping[str, Change]] = {
    "shift": _shift,
    "flip": _flip,
    "crop": _crop,
    "noise": _noise,
    "mixup": _mixup,
}
"""What changes pictures, by the words of the option."""
