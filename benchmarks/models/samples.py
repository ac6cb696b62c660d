"""Seeded sample inputs for the models of the zoo: one dictionary of arrays per sample.

Networks do not behave on white noise as they do on pictures, so a picture here is smooth colour
(coarse noise, enlarged) under dark bars the size of letter strokes. File contents are words or
bytes, padded as magika pads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Sample = Mapping[str, Array]

STROKES = 60
FILE_PADDING = 256  # magika's token for "no byte here"
WORDS = (
    b"import def return class model input output value None for while import numpy as np".split()
)


@dataclass(frozen=True)
class Picture:
    """A float32 batch of pictures with values in [`low`, `high`].

    `shape` is (N, 3, H, W), or (N, H, W, 3) when `channels_last`.
    """

    name: str
    shape: tuple[int, int, int, int]
    low: float
    high: float
    channels_last: bool = False

    def draw(self, generator: np.random.Generator) -> Array:
        """Return one batch."""
        height, width = self.shape[1:3] if self.channels_last else self.shape[2:4]
        batch = np.stack([_picture(generator, height, width) for _ in range(self.shape[0])])
        if not self.channels_last:
            batch = batch.transpose(0, 3, 1, 2)
        values = self.low + (self.high - self.low) * batch
        return np.ascontiguousarray(values, dtype=np.float32)


@dataclass(frozen=True)
class FileContents:
    """An int32 batch of files: the bytes of a file's beginning and its end, padded with 256."""

    name: str
    shape: tuple[int, int]

    def draw(self, generator: np.random.Generator) -> Array:
        """Return one batch, each file text or binary with equal chance."""
        return np.stack([_tokens(generator, self.shape[1]) for _ in range(self.shape[0])])


Input = Picture | FileContents


def draw_samples(inputs: tuple[Input, ...], n: int, seed: int) -> list[Sample]:
    """Return `n` samples of the shapes that `inputs` have; equal for equal seeds."""
    generators = (np.random.default_rng((seed, index)) for index in range(n))
    return [{item.name: item.draw(generator) for item in inputs} for generator in generators]


def _picture(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    canvas = _smooth(generator, height, width)  # (H, W, 3)
    for _ in range(STROKES):
        _draw_stroke(generator, canvas)
    return canvas


def _tokens(generator: np.random.Generator, count: int) -> NDArray[np.int32]:
    half = count // 2
    length = int(generator.integers(half // 4, 4 * half))
    maker = _text if generator.random() < 0.5 else _binary
    contents = np.frombuffer(maker(generator, length), np.uint8).astype(np.int32)
    tokens = np.full(count, FILE_PADDING, np.int32)
    head, tail = contents[:half], contents[-half:]
    tokens[: head.size] = head
    tokens[count - tail.size :] = tail
    return tokens


def _smooth(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    coarse = generator.random((5, 5, 3))
    rows, columns = np.linspace(0, 4, height), np.linspace(0, 4, width)
    tall = _interpolate(coarse, rows)  # (H, 5, 3)
    wide = _interpolate(tall.transpose(1, 0, 2), columns)  # (W, H, 3)
    return wide.transpose(1, 0, 2).copy()


def _interpolate(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.minimum(at.astype(int), values.shape[0] - 2)
    share: NDArray[np.float64] = (at - below)[:, None, None]
    between: NDArray[np.float64] = (1 - share) * values[below] + share * values[below + 1]
    return between


def _draw_stroke(generator: np.random.Generator, canvas: NDArray[np.float64]) -> None:
    height, width = canvas.shape[:2]
    top, left = generator.integers(0, height), generator.integers(0, width)
    long, thin = (
        2 + generator.integers(0, 2 + height // 12),
        1 + generator.integers(0, 2 + height // 80),
    )
    tall, wide = (long, thin) if generator.random() < 0.5 else (thin, long)
    canvas[top : top + tall, left : left + wide] *= 0.3 * generator.random()


def _text(generator: np.random.Generator, length: int) -> bytes:
    picks = generator.integers(0, len(WORDS), length // 4)
    return b" ".join(WORDS[pick] for pick in picks)[:length]


def _binary(generator: np.random.Generator, length: int) -> bytes:
    return generator.integers(0, 256, length, dtype=np.uint8).tobytes()
