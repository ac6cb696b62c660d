"""Pictures change, each in its own way, and stay pictures of their shape and type."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.errors import UsageError
from onnxslim.runtime.training.augmentation import AUGMENTATIONS, augmented
from onnxslim.services import training

PICTURES = np.random.default_rng(0).uniform(0, 1, (6, 3, 16, 20)).astype(np.float32)


def changed(*words: str, seed: int = 1, strength: float = 1.0) -> np.ndarray:
    feeds = {"x": PICTURES, "size": np.array([16, 20])}
    found = augmented(feeds, words, np.random.default_rng(seed), strength)
    assert found["size"] is feeds["size"]
    return found["x"]


@pytest.mark.parametrize("word", AUGMENTATIONS)
def test_pictures_change_and_keep_their_form(word: str) -> None:
    made = changed(word)
    assert (made.shape, made.dtype) == (PICTURES.shape, PICTURES.dtype)
    assert not np.array_equal(made, PICTURES)
    np.testing.assert_array_equal(made, changed(word))
    assert not np.array_equal(made, changed(word, seed=2))


@pytest.mark.parametrize("word", ["shift", "crop", "flip"])
def test_what_moves_pixels_makes_none_up(word: str) -> None:
    for made, picture in zip(changed(word), PICTURES, strict=True):
        assert np.isin(made[0], picture[0]).all()


def test_noise_is_small_and_mixtures_lie_between() -> None:
    assert 0 < np.abs(changed("noise") - PICTURES).mean() < 0.05
    assert PICTURES.min() <= changed("mixup").min()
    assert changed("mixup").max() <= PICTURES.max()


@pytest.mark.parametrize(("strength", "most"), [(0.1, 1), (1.0, 2), (4.0, 8)])
def test_pictures_are_shifted_by_an_eighth_times_the_strength(strength: float, most: int) -> None:
    picture = np.zeros((1, 1, 16, 16), np.float32)
    picture[..., 8, 8] = 1
    feeds = {"x": np.repeat(picture, 200, axis=0)}
    found = augmented(feeds, ["shift"], np.random.default_rng(0), strength)["x"]
    moves = np.argwhere(found)[:, 2:] - 8
    assert (moves.min(), moves.max()) in {(-most, most), (-most, most - 1)}  # the border cuts off


@pytest.mark.parametrize("word", ["crop", "noise"])
def test_changes_of_less_strength_are_smaller(word: str) -> None:
    strong, weak = (np.abs(changed(word, strength=s) - PICTURES).mean() for s in (2.0, 0.2))
    assert weak < strong / 2


def test_the_words_of_the_option_are_those_that_there_are() -> None:
    assert tuple(AUGMENTATIONS) == training.AUGMENTATIONS


def test_inputs_that_are_no_pictures_are_refused() -> None:
    with pytest.raises(UsageError, match=r"changes pictures \(N, C, H, W\); the inputs are `x`"):
        augmented({"x": np.zeros((2, 3), np.float32)}, ["flip"], np.random.default_rng(0))
