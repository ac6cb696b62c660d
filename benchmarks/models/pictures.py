"""Inputs that trained models know: rendered lines and pages of text, crops of a photograph.

Fonts and the photograph are those that matplotlib ships. Everything is drawn from a seed.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.models.samples import Picture

Pictures = NDArray[np.float32]
Colour = tuple[int, int, int]

_FONTS: Final = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
_LETTERS: Final = string.ascii_letters + string.digits
_LINE: Final = (320, 48)  # width, height
_PAGE: Final = (320, 320)
_NOISE: Final = 6.0  # deviation, of 255


def lines(count: int, seed: int) -> tuple[Pictures, list[str]]:
    """Pictures (n, 3, 48, 320) in -1..1 of a line of text each, and the texts."""
    rng = np.random.default_rng(seed)
    texts, pictures = [], []
    for _ in range(count):
        text = _phrase(rng, int(rng.integers(1, 4)))
        texts.append(text)
        pictures.append(_written(rng, _LINE, [(text, 4, 26)]))
    return np.stack(pictures), texts


def pages(count: int, seed: int) -> Pictures:
    """Pictures (n, 3, 320, 320) in -1..1 of some lines of text each."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tops = np.arange(10, 290, 40)[rng.random(7) < 0.7]
        texts = [
            (_phrase(rng, int(rng.integers(1, 4))), int(top), int(rng.integers(14, 26)))
            for top in tops
        ]
        found.append(_written(rng, _PAGE, texts))
    return np.stack(found)


def photographs(count: int, seed: int) -> Pictures:
    """Pictures (n, 3, 320, 320) in 0..1: crops of the photograph, and drawn ones, in turn."""
    rng = np.random.default_rng(seed)
    file = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photograph = Image.open(file).convert("RGB")
    drawn = Picture("", (1, 3, 320, 320), 0, 1)
    found = []
    for index in range(count):
        if index % 2:
            found.append(np.asarray(drawn.draw(rng)[0], np.float32))
        else:
            found.append(_crop(rng, photograph))
    return np.stack(found)


def _crop(rng: np.random.Generator, photograph: Image.Image) -> Pictures:
    side = int(min(photograph.size) * rng.uniform(0.5, 1.0))
    left, top = (int(rng.integers(0, size - side + 1)) for size in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side)).resize((320, 320))
    pixels = np.asarray(crop, np.float32).transpose(2, 0, 1) / 255 * rng.uniform(0.7, 1.2)
    if rng.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(np.minimum(pixels, 1), dtype=np.float32)


def _phrase(rng: np.random.Generator, words: int) -> str:
    return " ".join(
        "".join(rng.choice(list(_LETTERS), int(rng.integers(2, 8)))) for _ in range(words)
    )


def _written(
    rng: np.random.Generator, size: tuple[int, int], texts: list[tuple[str, int, int]]
) -> Pictures:
    paper, ink = colours(rng)
    image = Image.new("RGB", size, paper)
    pen = ImageDraw.Draw(image)
    for text, top, height in texts:
        name = _FONTS[int(rng.integers(len(_FONTS)))]
        pen.text((6, top), text, ink, _font(name, text, height, size[0] - 12))
    return scanned(rng, image)


def colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Of paper and ink; light on dark now and then."""
    paper, ink = (
        (int(red), int(green), int(blue))
        for red, green, blue in (rng.integers(180, 256, 3), rng.integers(0, 90, 3))
    )
    return (ink, paper) if rng.random() < 0.3 else (paper, ink)


def scanned(rng: np.random.Generator, image: Image.Image) -> Pictures:
    """The image, somewhat blurred and noisy, as the models take it: (3, H, W) in -1..1."""
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.8))))
    pixels = np.asarray(image, np.float32) + rng.normal(0, _NOISE, (*image.size[::-1], 3))
    scaled = np.clip(pixels, 0, 255).transpose(2, 0, 1) / 127.5 - 1
    return np.ascontiguousarray(scaled, dtype=np.float32)


def _font(name: str, text: str, height: int, width: int) -> ImageFont.FreeTypeFont:
    """The font, as large as it may be for `text` to fit."""
    file = str(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")
    font = ImageFont.truetype(file, height)
    length = font.getlength(text)
    return font if length <= width else ImageFont.truetype(file, int(height * width / length))
