"""Lines of text in packaged fonts, and photographs that packages ship: what int8 is judged on.

Text is that of the standard library's own documentation, figures, and Chinese words as often as
they are used. Everything is drawn from a seed; samples to calibrate with and samples to judge by
share neither lines nor photographs.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.models.pictures import Pictures, colours, scanned
from benchmarks.models.zoo import shipped_files

Draw = Callable[[np.random.Generator], str]

HEIGHT: Final = 48  # of a line, as the model takes it
WIDTH: Final = 320  # the least: narrower lines are padded with zeros, as PP-OCR does
SIDE: Final = 320  # of a photograph, as the model takes it
KINDS: Final = ("English", "figures", "Chinese")

_MARGIN: Final = 8
_MODULES: Final = (
    *("argparse", "asyncio", "collections", "csv", "decimal", "email.message", "fractions"),
    *("heapq", "json", "logging", "pathlib", "random", "statistics", "string", "textwrap"),
    *("threading", "unittest", "zipfile"),
)
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z',.;:()-]*")
_HELD_BACK: Final = 0.8  # share of the text that lines to judge by come from


# ---------------------------------------------------------------------------- text


@dataclass(frozen=True)
class Line:
    """A picture (3, 48, W) in -1..1, what is written there, and what kind of text it is."""

    picture: Pictures
    text: str
    kind: str


def lines(counts: Sequence[int], seed: int, known: frozenset[str], *, judged: bool) -> list[Line]:
    """That many lines of each of `KINDS`, made of characters that are `known`.

    Lines to calibrate with (not `judged`) are all `WIDTH` wide.
    """
    rng = np.random.default_rng(seed)
    drawers = (_english(judged), _figures, _chinese(known))
    fonts = (_latin_fonts(), _latin_fonts(), _chinese_fonts())
    found = []
    for kind, draw, files, count in zip(KINDS, drawers, fonts, counts, strict=True):
        fitting = (
            line
            for line in _drawn(rng, kind, draw, files)
            if known.issuperset(line.text) and (judged or line.picture.shape[2] == WIDTH)
        )
        found += itertools.islice(fitting, count)
    return found


def _drawn(
    rng: np.random.Generator, kind: str, draw: Draw, files: Sequence[Path]
) -> Iterator[Line]:
    while True:
        text = draw(rng)
        font = ImageFont.truetype(str(files[rng.integers(len(files))]), int(rng.integers(28, 37)))
        yield Line(_written(rng, text, font), text, kind)


def _written(rng: np.random.Generator, text: str, font: ImageFont.FreeTypeFont) -> Pictures:
    """One line on paper that light falls on unevenly."""
    paper, ink = colours(rng)
    width = int(font.getlength(text)) + 2 * _MARGIN
    image = Image.new("RGB", (width, HEIGHT), paper)
    place = (_MARGIN, HEIGHT // 2 + int(rng.integers(-2, 3)))
    ImageDraw.Draw(image).text(place, text, ink, font, anchor="lm")
    light = np.linspace(*rng.uniform(0.75, 1.1, 2), width)[None, :, None]  # along the line
    lit = np.clip(np.asarray(image) * light, 0, 255).astype(np.uint8)
    picture = scanned(rng, Image.fromarray(lit))
    return np.pad(picture, ((0, 0), (0, 0), (0, max(0, WIDTH - width))))


def _english(judged: bool) -> Draw:
    words = _documentation()
    split = int(len(words) * (1 - _HELD_BACK))
    own = words[split:] if judged else words[:split]

    def draw(rng: np.random.Generator) -> str:
        start, most = int(rng.integers(len(own) - 12)), int(rng.integers(10, 36))
        text = own[start]
        for word in own[start + 1 : start + 12]:
            if len(text) + 1 + len(word) > most:
                break
            text += f" {word}"
        return text

    return draw


@cache
def _documentation() -> tuple[str, ...]:
    """The words of what the standard library says of its modules and classes, in order."""
    texts = []
    for name in _MODULES:
        module = importlib.import_module(name)
        members = [value for _, value in sorted(vars(module).items()) if inspect.isclass(value)]
        own = [value for value in members if value.__module__.startswith(name.split(".")[0])]
        texts += [inspect.getdoc(item) or "" for item in (module, *own)]
    return tuple(word for text in dict.fromkeys(texts) for word in _WORD.findall(text))


def _figures(rng: np.random.Generator) -> str:
    """A date, an amount, a time, a number or a code."""
    a, b, c = (int(value) for value in rng.integers((1, 0, 1000), (29, 60, 10_000)))
    forms = (
        f"20{b:02d}-{1 + a % 12:02d}-{a:02d}",
        f"${c:,}.{b:02d}",
        f"{a % 24:02d}:{b:02d}:{c % 60:02d}",
        f"+{a} {b:02d} {c} {c * 7 % 10_000:04d}",
        f"No. {c}/{a}-{b}",
        f"{c / 7:.4f} kg",
        f"{100 * b / 61:.2f}%",
        f"0x{c * 7919:08X}",
    )
    return forms[rng.integers(len(forms))]


def _chinese(known: frozenset[str]) -> Draw:
    words, shares = _word_list(known)

    def draw(rng: np.random.Generator) -> str:
        count = int(rng.integers(2, 7))
        return "".join(words[index] for index in rng.choice(len(words), count, p=shares))

    return draw


def _word_list(known: frozenset[str]) -> tuple[list[str], np.ndarray]:
    """The words of a Chinese dictionary, and how often each is used."""
    (file,) = shipped_files("jieba", "0.42.1", ["jieba-0.42.1/jieba/dict.txt"])
    rows = [line.split(" ") for line in file.read_text("utf-8").splitlines()]
    own = [
        (word, float(count))
        for word, count, *_ in rows
        if len(word) <= 4 and known.issuperset(word) and not word.isascii()
    ]
    counts = np.array([count for _, count in own])
    return [word for word, _ in own], counts / counts.sum()


@cache
def _latin_fonts() -> tuple[Path, ...]:
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    own = [folder / f"{name}.ttf" for name in ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")]
    roboto = [
        f"font-roboto-0.0.1/font_roboto/files/Roboto-{style}.ttf" for style in ("Regular", "Bold")
    ]
    others = (
        ("font-roboto", "0.0.1", roboto),
        ("font-source-sans-pro", "0.0.1", ["font_source_sans_pro/files/SourceSansPro-Regular.ttf"]),
        (
            "font-source-serif-pro",
            "0.0.1",
            ["font_source_serif_pro/files/SourceSerifPro-Regular.ttf"],
        ),
        ("font-caladea", "0.0.2", ["font_caladea/files/Caladea-Italic.ttf"]),
        ("font-hanken-grotesk", "0.0.2", ["font_hanken_grotesk/files/HankenGrotesk-Medium.otf"]),
    )
    return (*own, *(file for source in others for file in shipped_files(*source)))


@cache
def _chinese_fonts() -> tuple[Path, ...]:
    names = ("NotoSansCJKsc", "NotoSerifCJKsc")
    members = [f"mplfonts/fonts/{name}-Regular.otf" for name in names]
    return tuple(shipped_files("mplfonts", "0.0.11", members))


# ---------------------------------------------------------------------------- photographs

_SKIMAGE: Final = ("scikit-image", "0.26.0", "skimage/data")
_INSIGHTFACE: Final = ("insightface", "2.1", "insightface/data/images")
_ULTRALYTICS: Final = ("ultralytics", "8.4.190", "ultralytics/assets")
_SKLEARN: Final = ("scikit-learn", "1.9.1", "sklearn/datasets/images")
_FACES: Final = ("face_recognition", "1.3.0", "face_recognition-1.3.0/tests/test_images")
_TO_CALIBRATE: Final = (
    (*_SKIMAGE, ("astronaut.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg")),
    (*_SKLEARN, ("china.jpg",)),
    (*_INSIGHTFACE, ("Tom_Hanks_54745.png", "mask_blue.jpg", "mask_white.jpg")),
    (*_ULTRALYTICS, ("zidane.jpg",)),
    (*_FACES, ("biden.jpg", "obama2.jpg")),
)
_TO_JUDGE: Final = (
    (*_SKIMAGE, ("camera.png", "coffee.png")),
    (*_SKLEARN, ("flower.jpg",)),
    (*_INSIGHTFACE, ("t1.jpg",)),
    (*_ULTRALYTICS, ("bus.jpg",)),
    (
        *_FACES,
        ("obama.jpg", "obama3.jpg", "obama_partial_face.jpg", "obama_partial_face2.jpg"),
    ),
)


def photographs(count: int, seed: int, *, judged: bool) -> Pictures:
    """Pictures (n, 3, 320, 320) in 0..1: parts of the photographs in turn, as they are or mirrored.

    Made square with black on the right and below, blue first, as the package `nudenet` does.
    """
    rng = np.random.default_rng(seed)
    images = [Image.open(file).convert("RGB") for file in _photograph_files(judged)]
    parts = (_part(rng, images[index % len(images)]) for index in range(count))
    return np.stack([_letterboxed(part) for part in parts])


def count_photographs(*, judged: bool) -> int:
    """How many there are."""
    return len(_photograph_files(judged))


def _photograph_files(judged: bool) -> list[Path]:
    found = []
    for package, version, folder, names in _TO_JUDGE if judged else _TO_CALIBRATE:
        members = [f"{folder}/{name}" for name in names]
        found += shipped_files(package, version, members, is_sdist=package == "face_recognition")
    if judged:
        found.append(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    return found


def _part(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """A part of 40 to 100 % of either side."""
    width, height = (
        int(side * share) for side, share in zip(image.size, rng.uniform(0.4, 1, 2), strict=True)
    )
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    part = image.crop((left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _letterboxed(image: Image.Image) -> Pictures:
    square = Image.new("RGB", (max(image.size),) * 2)
    square.paste(image)
    pixels = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) / 255
    # (H, W, RGB) -> (BGR, H, W)
    return np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))


__all__ = ["HEIGHT", "KINDS", "SIDE", "WIDTH", "Line", "count_photographs", "lines", "photographs"]
