"""Generate inputs for a model from a seed, when the user gave none.

Shapes and kinds of values are tried until the model accepts a sample (see `input_sizes`), and its
outputs hold a number. What the graph demands of its inputs (see `onnxslim.analysis.input_demands`)
is tried first. A sample with other sizes follows, so that a size that a pass froze is noticed. The
number of tries is bounded, and the result depends on the model and the seed alone.

Owns: which kinds of values are tried, and in which order. Not here: sizes (see `input_sizes`), and
the values of an input with a role (see `role_values`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from typing import Final

import numpy as np

from onnxslim.analysis.input_demands import InputDemands
from onnxslim.errors import RunStopped, RuntimeFailure
from onnxslim.graph.ir import SUB_BYTE_BITS, to_onnx_dtype
from onnxslim.io.model import Model
from onnxslim.runtime.samples.input_sizes import (
    NO_DEMANDS,
    StaticShape,
    StaticShapes,
    check_shapes,
    other_sizes,
    size_plans,
)
from onnxslim.runtime.samples.role_values import WORDS, draw_in_role
from onnxslim.runtime.samples.timing_sizes import timing_shapes
from onnxslim.runtime.session import Feeds, Outputs, TensorInfo

MAX_TRIES: Final = 72
MAX_BYTES: Final = 1 << 30  # size of one sample
MAX_SILENT: Final = 12  # tries that the model accepts, and returns no number for
_TEXTS: Final = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")


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
        refused: the last sample that the model refused, where there are no others.
        outputs: of the model on each sample; empty where it has no inputs.
        kinds: of the samples.
    """

    samples: tuple[Feeds, ...] = ()
    description: str = ""
    failure: str | None = None
    refused: Feeds | None = None
    outputs: tuple[Outputs, ...] = ()
    kinds: tuple[InputKind, ...] = ()


@dataclass(frozen=True)
class _AcceptedSample:
    kind: InputKind
    feeds: Feeds
    outputs: Outputs


def find_inputs(
    inputs: Sequence[TensorInfo],
    run: Callable[[Feeds], Outputs],
    *,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    demands: InputDemands = NO_DEMANDS,
) -> SeededInputs:
    """Samples of several kinds that the model accepts, and that it returns a number for.

    Where the model returns nothing but NaN on all of them, these are the samples.

    Args:
        inputs: the inputs of the model.
        run: runs the model, and raises `RuntimeFailure` when it refuses the feeds.
        seed: seed of the values.
        input_shapes: full shapes by input name, used instead of the sizes to try.
        demands: sizes and roles that the graph gives the inputs, tried before any others.

    Raises:
        UsageError: `input_shapes` contradicts the model.
    """
    given = check_shapes(inputs, input_shapes or {})
    unsupported = next((info for info in inputs if not _can_draw(info)), None)
    if unsupported is not None:
        why = f"No values can be made up for input `{unsupported.name}`, which is a "
        return SeededInputs(failure=f"{why}{unsupported.kind}.")
    search = _InputSearch(_demanded(inputs, demands), run, seed, demands)
    found = search.samples(given)
    if found.samples or search.is_stopped or demands.is_empty:
        return found
    other = _InputSearch(inputs, run, seed, NO_DEMANDS).samples(given)
    return other if other.samples else found


def timing_samples(
    model: Model,
    inputs: Sequence[TensorInfo],
    run: Callable[[Feeds], Outputs],
    found: SeededInputs,
    *,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    demands: InputDemands = NO_DEMANDS,
) -> tuple[Feeds, ...]:
    """Samples of the one size that `model` is timed on, of the kinds of those in `found`.

    Where the model takes no larger size, these are the samples in `found` of the size of the first.
    Other arguments are those of `find_inputs`, which found the samples.
    """
    given = check_shapes(inputs, input_shapes or {})
    accepted = _shapes(found.samples[0])
    for shapes in timing_shapes(_demanded(inputs, demands), accepted, given, model, demands):
        drawn = (
            draw_feeds(inputs, shapes, kind, seed + place, demands)
            for place, kind in enumerate(found.kinds)
        )
        if _runs(run, first := next(drawn)):
            return (first, *(feeds for feeds in drawn if _runs(run, feeds)))
    return tuple(feeds for feeds in found.samples if _shapes(feeds) == accepted)


def _runs(run: Callable[[Feeds], Outputs], feeds: Feeds) -> bool:
    try:
        return not is_silent(run(feeds))
    except RuntimeFailure:
        return False


def _shapes(feeds: Feeds) -> dict[str, StaticShape]:
    return {name: tuple(array.shape) for name, array in feeds.items()}


def _demanded(inputs: Sequence[TensorInfo], demands: InputDemands) -> list[TensorInfo]:
    """The inputs with the sizes that the graph leaves no choice for."""
    found = []
    for info in inputs:
        sizes = demands.sizes(info.name)
        if info.shape is not None and sizes is not None and len(sizes) == len(info.shape):
            pairs = zip(info.shape, sizes, strict=True)
            info = replace(info, shape=tuple(old if new is None else new for old, new in pairs))
        found.append(info)
    return found


def _tries(
    inputs: Sequence[TensorInfo], given: StaticShapes, demands: InputDemands
) -> Iterator[tuple[StaticShapes, InputKind]]:
    """Pairs of sizes and kinds to try: a kind after the first waits for three more sizes."""
    kinds = _search_kinds(inputs)
    source = size_plans(inputs, given, demands)
    plans: list[StaticShapes] = []
    for turn in range(MAX_TRIES):  # a plan is made in its turn: the first nearly always fits
        plans += islice(source, 1)
        for late in reversed(range(len(kinds))):
            at = turn - 3 * late
            if 0 <= at < len(plans):
                yield plans[at], kinds[late]


class _InputSearch:
    def __init__(
        self,
        inputs: Sequence[TensorInfo],
        run: Callable[[Feeds], Outputs],
        seed: int,
        demands: InputDemands,
    ) -> None:
        self.inputs, self.run, self.seed, self.demands = inputs, run, seed, demands
        self.found: list[_AcceptedSample] = []
        self.silent: list[_AcceptedSample] = []  # the model returned no number
        self.failure = "No sizes could be tried."
        self.refused: Feeds | None = None
        self.is_stopped = False

    def samples(self, given: StaticShapes) -> SeededInputs:
        """Try sizes and kinds until a sample is accepted, and add others like it."""
        for shapes, kind in islice(_tries(self.inputs, given, self.demands), MAX_TRIES):
            if self.draw(kind, shapes):
                return self.more_samples(
                    shapes, other_sizes(self.inputs, shapes, given, self.demands)
                )
            if len(self.silent) == MAX_SILENT or self.is_stopped:
                break
        if not self.silent:
            return SeededInputs(failure=self.failure, refused=self.refused)
        self.found = self.silent[:4]
        return self._result()

    def draw(self, kind: InputKind, shapes: StaticShapes) -> bool:
        """Try one sample; keep it if the model accepts it and returns a number."""
        if self.is_stopped:
            return False
        size = sum(prod(shapes[info.name]) * _item_bytes(info) for info in self.inputs)
        if size > MAX_BYTES:
            self.failure = f"One sample would take {size:,} bytes."
            return False
        seed = self.seed + len(self.found) + len(self.silent)
        feeds = draw_feeds(self.inputs, shapes, kind, seed, self.demands)
        try:
            outputs = self.run(feeds)
        except RunStopped as error:  # others like it would take as long
            self.failure, self.refused, self.is_stopped = f"On made-up inputs {error}", None, True
            return False
        except RuntimeFailure as error:
            self.failure, self.refused = str(error), feeds
            return False
        kept = self.silent if is_silent(outputs) else self.found
        kept.append(_AcceptedSample(kind, feeds, outputs))
        return kept is self.found

    def more_samples(self, shapes: StaticShapes, others: Iterator[StaticShapes]) -> SeededInputs:
        """Add the other kinds at the accepted sizes, then other sizes."""
        if not self.inputs:
            return SeededInputs(({},), "its constant inputs (the model has no inputs)")
        first = self.found[0].kind
        for kind in (InputKind.NORMAL, InputKind.UNIFORM, InputKind.INTEGERS):
            if kind is first:
                continue
            silent = len(self.silent)
            if not self.draw(kind, shapes) and len(self.silent) > silent:
                self.draw(first, shapes)
        resized = any(self.draw(first, other) for other in others)
        if not resized:
            self.draw(first, shapes)
        return self._result(resized=resized)

    def _result(self, *, resized: bool = False) -> SeededInputs:
        roles = self.demands.roles
        words = dict.fromkeys(WORDS[roles[i.name].kind] for i in self.inputs if i.name in roles)
        if any(info.name not in roles for info in self.inputs):
            words = dict.fromkeys([*(sample.kind.value for sample in self.found), *words])
        text = ", ".join((*words, "two sizes") if resized else words)
        count = len(self.found)
        description = f"{count} seeded sample{'s' if count > 1 else ''} ({text})"
        samples = tuple(sample.feeds for sample in self.found)
        outputs = tuple(sample.outputs for sample in self.found)
        kinds = tuple(sample.kind for sample in self.found)
        return SeededInputs(samples, description, outputs=outputs, kinds=kinds)


def is_silent(outputs: Outputs) -> bool:
    """Whether no output holds a value, so that none proves anything about another model."""
    return bool(outputs) and all(map(has_no_value, outputs.values()))


def has_no_value(output: object) -> bool:
    """Whether an output is an array that is empty, or NaN and infinite throughout."""
    if not isinstance(output, np.ndarray):  # sequences and optional values
        return False
    return output.size == 0 or (output.dtype.kind in "fc" and not np.isfinite(output).any())


# ------------------------------------------------------------------------- values


def draw_feeds(
    inputs: Sequence[TensorInfo],
    shapes: StaticShapes,
    kind: InputKind,
    seed: int,
    demands: InputDemands = NO_DEMANDS,
) -> Feeds:
    """One sample: an array for every input."""
    rng = np.random.default_rng(seed)
    feeds = {info.name: _draw(_dtype(info), shapes[info.name], kind, rng) for info in inputs}
    symbols = demands.sizes_by_symbol(shapes)
    for place, info in enumerate(inputs):
        role = demands.roles.get(info.name)
        if role is None:
            continue
        own = np.random.default_rng((seed, place))  # other inputs stay as they are
        plain = kind in (InputKind.ONES, InputKind.INTEGERS)
        drawn = draw_in_role(role, _dtype(info), shapes[info.name], symbols, own, plain=plain)
        feeds[info.name] = feeds[info.name] if drawn is None else drawn
    return feeds


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
    words = ("0", "1", "2", "3") if kind is InputKind.INTEGERS else _TEXTS
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
