"""Pictures become what a model takes, or a sentence says what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import DataSettings
from onnxslim.runtime.samples.given import GivenData
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.session import Dim, TensorInfo

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
NCHW = ("N", 3, 8, 8)


def info(shape: tuple[Dim, ...], dtype: object = np.float32) -> TensorInfo:
    return TensorInfo("x", "tensor(float)", np.dtype(dtype), shape)


def opened(folder: Path, one: TensorInfo, **words: object) -> Samples:
    return open_samples(GivenData(folder, DataSettings.of(words)), [one])


def first(folder: Path, one: TensorInfo, **words: object) -> np.ndarray:
    return next(iter(opened(folder, one, **words))).feeds["x"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"preset": "none"}, PIXELS.astype(np.float32)),
        ({"preset": "zero-one"}, PIXELS / 255),
        ({"preset": "minus-one-one"}, PIXELS / 127.5 - 1),
        ({"scale": "1/128"}, PIXELS / 128),
        ({"scale": 1, "mean": "128", "std": 64}, (PIXELS - 128.0) / 64),
        ({"mean": [0.1, 0.2, 0.3]}, PIXELS / 255 - np.array([0.1, 0.2, 0.3])),
        (
            {"preset": "imagenet"},
            (PIXELS / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225]),
        ),
    ],
)
def test_pixels_are_scaled_as_the_user_says(
    folder: Path, words: Mapping[str, object], expected: np.ndarray
) -> None:
    found = first(folder, info(NCHW), **words)
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-5)
    as_nhwc = first(folder, info(("N", 8, 8, 3)), **words)
    np.testing.assert_array_equal(as_nhwc[0], found[0].transpose(1, 2, 0))
    in_bgr = first(folder, info(NCHW), **words, colors="bgr")
    if len(words.get("mean", ())) != 3:  # type: ignore[arg-type]
        np.testing.assert_array_equal(in_bgr[:, ::-1], found)


def test_bytes_are_given_as_they_are(folder: Path) -> None:
    found = first(folder, info(NCHW, np.uint8))
    np.testing.assert_array_equal(found[0], PIXELS.transpose(2, 0, 1))
    with pytest.raises(UsageError, match="takes pixels as they are"):
        opened(folder, info(NCHW, np.uint8), preset="imagenet")


def test_layout_size_and_channels_are_those_of_the_model(folder: Path) -> None:
    assert first(folder, info((1, 1, 4, 6)), preset="none").shape == (1, 1, 4, 6)
    assert first(folder, info(("N", 4, 6, 4)), preset="none", layout="nhwc").shape == (1, 4, 6, 4)
    assert first(folder, info((3, 8, 8)), preset="none").shape == (3, 8, 8)
    open_size = info(("N", 3, "H", "W"))
    assert first(folder, open_size, preset="none", image_size="5x7").shape == (1, 3, 5, 7)


@pytest.mark.parametrize(
    ("shape", "words", "message"),
    [
        (NCHW, {}, r"how pixels were scaled .*--preset imagenet, zero-one"),
        (("N", 3, "H", "W"), {"preset": "none"}, r"leaves the size .* open .*--image-size 224"),
        (NCHW, {"preset": "none", "image_size": 9}, "has the height 8, and `image-size` says 9"),
        (("N", 3, 8, 3), {"preset": "none"}, "does not tell where the channels are"),
        (("N", 12, 8, 8), {"preset": "none", "layout": "nchw"}, "has 12 channels"),
        (("N", 8), {"preset": "none"}, r"takes no pictures: it has \[N, 8\]"),
        (("N", 1, 8, 8), {"preset": "imagenet"}, "imagenet is for three channels"),
        (NCHW, {"mean": "1,2"}, "`mean` has 2 values, and input `x` 3 channels"),
        (NCHW, {"mean": 123}, r"that of pixels up to 255.*--scale 1"),
    ],
)
def test_what_is_missing_is_asked_for(
    folder: Path, shape: tuple[Dim, ...], words: Mapping[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        opened(folder, info(shape), **words)


def test_larger_pictures_are_resized_and_their_centre_is_cut_out(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200  # the centre
    Image.fromarray(wide).save(tmp_path / "a.png")
    found = first(tmp_path, info(NCHW), preset="none")
    assert found[0, :, 2:6, 2:6].min() > 190
    assert found[0].max() <= 201


def test_turned_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    found = first(tmp_path, info(NCHW), preset="none")
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), PIXELS[::-1, ::-1])


@pytest.mark.parametrize(("names", "labels"), [("cat dog", [0, 0, 1]), ("10 9", [10, 10, 9])])
def test_folders_are_classes(tmp_path: Path, names: str, labels: list[int]) -> None:
    one, other = names.split()
    for path in (f"{one}/a.png", f"{one}/deep/b.JPG", f"{other}/a.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(tmp_path / path)
    samples = opened(tmp_path, info(NCHW), preset="none")
    found = [int(run.labels[0]) for run in samples if run.labels is not None]
    assert (found, samples.count) == (labels, 3)
    assert f"{one} = {labels[0]}" in samples.remark
    Image.fromarray(PIXELS).save(tmp_path / "loose.png")
    assert all(run.labels is None for run in opened(tmp_path, info(NCHW), preset="none"))


def test_pictures_are_joined_for_a_model_of_several(tmp_path: Path) -> None:
    for number in range(5):
        Image.fromarray(PIXELS + number).save(tmp_path / f"{number}.png")
    samples = opened(tmp_path, info((2, 3, 8, 8)), preset="none")
    assert [run.feeds["x"].shape[0] for run in samples] == [2, 2]
    assert samples.count == 4


def test_file_that_is_no_picture_is_named(folder: Path) -> None:
    (folder / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"b\.jpg` cannot be read as a picture"):
        list(opened(folder, info(NCHW), preset="none"))
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "b.png")
    (folder / "b.jpg").unlink()
    with pytest.raises(UsageError, match=r"b\.png` has more than 8 bits"):
        list(opened(folder, info(NCHW), preset="none"))


def test_folder_of_two_kinds_is_refused(folder: Path) -> None:
    np.save(folder / "x.npy", PIXELS)
    with pytest.raises(UsageError, match="holds arrays and pictures"):
        opened(folder, info(NCHW), preset="none")


def test_pillow_is_asked_for_where_it_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxslim-compiler\[images\]'"):
        opened(folder, info(NCHW), preset="none")
