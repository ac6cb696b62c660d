"""Generate inputs for a model from a seed, when the user gave none.

Shapes and kinds of values are tried until the model accepts a sample (see `input_sizes`). Where the
model accepts it, a sample with other sizes follows, so that a size that a pass froze is noticed.
The number of tries is bounded, and the result depends on the model and the seed alone.

Owns: which kinds of values are tried, and in which order. Not here: sizes (see `input_sizes`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from onnxslim.errors import RuntimeFailure
from onnxslim.graph.ir import SUB_BYTE_BITS, to_onnx_dtype
from onnxslim.runtime.samples.input_sizes import (
    StaticShape,
    StaticShapes,
    check_shapes,
    other_sizes,
    size_plans,
)
from onnxslim.runtime.session import Feeds, TensorInfo

MAX_TRIES: Final = 72
MAX_BYTES: Final = 1 << 30  # size of one sample
_WORDS: Final = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")


class InputKind(enum.Enum):
    """A distribution to draw the values of inputs from."""

    NORMAL = "normal"  # floats: standard normal; integers: 0 to 9, bytes: all of them
    UNIFORM = "uniform"  # floats: [0, 1]; integers: 0 and 1
    INTEGERS = "integers"  # 0 to 4, as floats too
    ONES = "ones"  # integers and booleans one; floats [0, 1]
    ZEROS = "zeros"  # integers and booleans zero; floats [0, 1]


@dataclass(frozen=True)
class SeededInputs:
    """Samples that the model accepted, or why there are none.

    Attributes:
        samples: arrays by input name, for each sample.
        description: e.g. `4 seeded samples (normal, uniform, integers)`.
        failure: a sentence that says why there are no samples; None where there are.
    """

    samples: tuple[Feeds, ...] = ()
    description: str = ""
    failure: str | None = None


@dataclass(frozen=True)
class _AcceptedSample:
    kind: InputKind
    feeds: Feeds


def find_inputs(
    inputs: Sequence[TensorInfo],
    accepts: Callable[[Feeds], object],
    *,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> SeededInputs:
    """Samples of several kinds that the model accepts.

    Args:
        inputs: the inputs of the model.
        accepts: runs the model, and raises `RuntimeFailure` when it refuses the feeds.
        seed: seed of the values.
        input_shapes: full shapes by input name, used instead of the sizes to try.

    Raises:
        UsageError: `input_shapes` contradicts the model.
    """
    given = check_shapes(inputs, input_shapes or {})
    unsupported = next((info for info in inputs if not _can_draw(info)), None)
    if unsupported is not None:
        why = f"No values can be made up for input `{unsupported.name}`, which is a "
        return SeededInputs(failure=f"{why}{unsupported.kind}.")
    search = _InputSearch(inputs, accepts, seed)
    for shapes, kind in _tries(inputs, given):
        if search.draw(kind, shapes):
            return search.more_samples(shapes, other_sizes(inputs, shapes, given))
    return SeededInputs(failure=search.failure)


def _tries(
    inputs: Sequence[TensorInfo], given: StaticShapes
) -> list[tuple[StaticShapes, InputKind]]:
    """Pairs of sizes and kinds to try: a kind after the first waits for three more sizes."""
    kinds = _search_kinds(inputs)
    plans = list(enumerate(size_plans(inputs, given)))
    order = [(p + 3 * k, plan, kind) for p, plan in plans for k, kind in enumerate(kinds)]
    order.sort(key=lambda item: item[0])
    return [(plan, kind) for _, plan, kind in order[:MAX_TRIES]]


class _InputSearch:
    def __init__(
        self, inputs: Sequence[TensorInfo], accepts: Callable[[Feeds], object], seed: int
    ) -> None:
        self.inputs, self.accepts, self.seed = inputs, accepts, seed
        self.found: list[_AcceptedSample] = []
        self.failure = "No sizes could be tried."

    def draw(self, kind: InputKind, shapes: StaticShapes) -> bool:
        """Try one sample; keep it if the model accepts it."""
        size = sum(prod(shapes[info.name]) * _item_bytes(info) for info in self.inputs)
        if size > MAX_BYTES:
            self.failure = f"One sample would take {size:,} bytes."
            return False
        feeds = draw_feeds(self.inputs, shapes, kind, self.seed + len(self.found))
        try:
            self.accepts(feeds)
        except RuntimeFailure as error:
            self.failure = str(error)
            return False
        self.found.append(_AcceptedSample(kind, feeds))
        return True

    def more_samples(self, shapes: StaticShapes, others: Iterator[StaticShapes]) -> SeededInputs:
        """Add the other kinds at the accepted sizes, then other sizes."""
        if not self.inputs:
            return SeededInputs(({},), "its constant inputs (the model has no inputs)")
        first = self.found[0].kind
        for kind in (InputKind.NORMAL, InputKind.UNIFORM, InputKind.INTEGERS):
            if kind is not first:
                self.draw(kind, shapes)
        resized = any(self.draw(first, other) for other in others)
        if not resized:
            self.draw(first, shapes)
        kinds = dict.fromkeys(sample.kind.value for sample in self.found)
        words = ", ".join((*kinds, "two sizes") if resized else kinds)
        count = len(self.found)
        description = f"{count} seeded sample{'s' if count > 1 else ''} ({words})"
        return SeededInputs(tuple(sample.feeds for sample in self.found), description)


# ------------------------------------------------------------------------- values


def draw_feeds(
    inputs: Sequence[TensorInfo], shapes: StaticShapes, kind: InputKind, seed: int
) -> Feeds:
    """One sample: an array for every input."""
    rng = np.random.default_rng(seed)
    return {info.name: _draw(_dtype(info), shapes[info.name], kind, rng) for info in inputs}


def _draw(
    dtype: np.dtype, shape: StaticShape, kind: InputKind, rng: np.random.Generator
) -> np.ndarray:
    if dtype.kind == "O":
        return _draw_strings(shape, kind, rng)
    if dtype.kind == "b":
        return _draw_integers(np.dtype(np.uint8), shape, kind, rng, 2).astype(bool)
    if dtype.kind in "iu":
        top = {InputKind.NORMAL: 10, InputKind.UNIFORM: 2}.get(kind, 5)
        if dtype.itemsize == 1 and kind is InputKind.NORMAL:
            top = int(np.iinfo(dtype).max) + 1
        return _draw_integers(dtype, shape, kind, rng, top)
    if kind is InputKind.NORMAL:
        return np.asarray(rng.standard_normal(shape), dtype)
    if kind is InputKind.INTEGERS:
        return rng.integers(0, 5, shape).astype(dtype)
    return np.asarray(rng.random(shape), dtype)


def _draw_integers(
    dtype: np.dtype, shape: StaticShape, kind: InputKind, rng: np.random.Generator, top: int
) -> np.ndarray:
    if kind in (InputKind.ONES, InputKind.ZEROS):
        return np.full(shape, int(kind is InputKind.ONES), dtype)
    return np.asarray(rng.integers(0, top, shape)).astype(dtype)


def _draw_strings(shape: StaticShape, kind: InputKind, rng: np.random.Generator) -> np.ndarray:
    words = ("0", "1", "2", "3") if kind is InputKind.INTEGERS else _WORDS
    drawn = np.empty(shape, object)
    drawn[...] = np.asarray(words, object)[rng.integers(0, len(words), shape)]
    return drawn


def _search_kinds(inputs: Sequence[TensorInfo]) -> tuple[InputKind, ...]:
    """The kinds to try; ones and zeros differ from others only for integers and booleans."""
    if all(_dtype(info).kind not in "iub" for info in inputs):
        return (InputKind.NORMAL, InputKind.UNIFORM, InputKind.INTEGERS)
    return tuple(InputKind)


def _can_draw(info: TensorInfo) -> bool:
    return info.dtype is not None and to_onnx_dtype(info.dtype) not in SUB_BYTE_BITS


def _dtype(info: TensorInfo) -> np.dtype:
    if info.dtype is None:
        raise TypeError(f"`{info.name}` is {info.kind}.")
    return info.dtype


def _item_bytes(info: TensorInfo) -> int:
    return _dtype(info).itemsize
