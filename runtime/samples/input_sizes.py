"""Sizes for the open dimensions of a model's inputs.

A symbol gets the same size everywhere; the first axis is one sample; image and sequence axes go
through a short list of sizes. Sizes that follow from chosen ones, and the least that the windows of
the graph fit into, come from `onnxslim.analysis.pinned_sizes`.

Owns: which sizes are tried, and in which order. Not here: drawing values (see `seeded`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Final

from onnxslim.analysis.input_demands import InputDemands
from onnxslim.errors import UsageError
from onnxslim.limits import MOST_DRAWN_ENTRIES
from onnxslim.runtime.session import Dim, TensorInfo

StaticShape = tuple[int, ...]
StaticShapes = Mapping[str, StaticShape]
NO_DEMANDS: Final = InputDemands()

_IMAGE_SIZES: Final = (64, 224, 32, 128, 256, 320, 28, 299, 512, 640)
_SEQUENCE_SIZES: Final = (8, 16, 32, 64, 128, 1, 4, 256, 80, 512)
_CHANNELS: Final = (3, 1)
# shapes tried for an input whose rank is unknown
_UNKNOWN_RANK: Final[tuple[StaticShape, ...]] = ((), (1,), (1, 8), (1, 3, 64, 64), (1, 8, 16))
# parts of names that exporters give open axes; without one, the position decides
_ROLE_OF_NAME: Final = {
    "batch": "batch", "height": "image", "width": "image",
    "seq": "sequence", "len": "sequence", "time": "sequence", "token": "sequence",
}  # fmt: skip


def check_shapes(
    inputs: Sequence[TensorInfo], input_shapes: Mapping[str, Sequence[int]]
) -> dict[str, StaticShape]:
    """`input_shapes` as tuples, checked against the shapes that the model declares.

    Raises:
        UsageError: an input is unknown, or a rank or size contradicts the model or is negative.
    """
    declared = {info.name: info for info in inputs}
    checked: dict[str, StaticShape] = {}
    for name, sizes in input_shapes.items():
        shape = tuple(int(size) for size in sizes)
        if name not in declared:
            names = ", ".join(f"`{known}`" for known in declared) or "none"
            raise UsageError(f"There is no input `{name}` to give a shape; the inputs are {names}.")
        if any(size < 0 for size in shape):
            raise UsageError(f"The shape {list(shape)} for input `{name}` has a negative size.")
        wanted = declared[name].shape
        if wanted is not None and not fits(shape, wanted):
            raise UsageError(
                f"The shape {list(shape)} for input `{name}` does not fit the model, which "
                f"declares {spell_shape(wanted)}."
            )
        checked[name] = shape
    _check_symbols(declared, checked)
    return checked


def fits(shape: StaticShape, declared: tuple[Dim, ...]) -> bool:
    """Whether `shape` has the declared rank and the declared fixed sizes."""
    if len(shape) != len(declared):
        return False
    return all(not isinstance(d, int) or d == s for s, d in zip(shape, declared, strict=True))


def spell_shape(shape: Sequence[Dim]) -> str:
    """A declared shape in words: `[N, 3, ?, ?]`."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


class SizeChoices:
    """Sizes that were chosen for symbols: a symbol has one, and others may follow from it."""

    def __init__(
        self,
        inputs: Sequence[TensorInfo],
        given: StaticShapes,
        demands: InputDemands = NO_DEMANDS,
        *,
        with_states: bool = True,
    ) -> None:
        self._demands = demands
        self._states = _states(inputs) if with_states else ()
        self._known: dict[str, int] = {}
        for info in inputs:
            for axis, value in enumerate(given.get(info.name, ())):
                symbol = self._symbol(info, axis)
                if symbol is not None:
                    self._known.setdefault(symbol, value)

    def take(self, info: TensorInfo, axis: int, value: int) -> int:
        """The size of an open axis: `value`, unless another is known or demanded."""
        symbol = self._symbol(info, axis)
        if symbol is None:
            return value
        if symbol not in self._known:
            least = self._demands.symbols.least.get(symbol, 1)
            self._known[symbol] = _reaching(value, least)
            self._known = self._demands.symbols.settled(self._known)
        return self._known[symbol]

    def role(self, info: TensorInfo, axis: int) -> str:
        """The likely role of an open axis: `batch`, `channels`, `image` or `sequence`."""
        if axis == 1 and info.name in self._states:
            return "batch"
        return _axis_role(info.shape or (), axis)

    def _symbol(self, info: TensorInfo, axis: int) -> str | None:
        size = (info.shape or ())[axis] if axis < len(info.shape or ()) else None
        if isinstance(size, int):
            return None
        return self._demands.symbol(info.name, axis) or (None if size is None else repr(size))


def _states(inputs: Sequence[TensorInfo]) -> tuple[str, ...]:
    """Inputs that are likely states of recurrent layers: (layers, batch, features).

    Where the first axis of another input is open, a fixed first axis counts no samples.
    """
    has_batch = any(info.shape and not isinstance(info.shape[0], int) for info in inputs)
    return tuple(
        info.name
        for info in inputs
        if has_batch
        and info.shape is not None
        and [isinstance(size, int) for size in info.shape] == [True, False, True]
    )


def _reaching(size: int, least: int) -> int:
    """`size`, doubled until it is at least `least`; 1 becomes the least itself."""
    if size == 1:
        return least
    while size < least:
        size *= 2
    return size


def size_plans(
    inputs: Sequence[TensorInfo], given: StaticShapes, demands: InputDemands = NO_DEMANDS
) -> Iterator[StaticShapes]:
    """Concrete shapes to try, the likeliest first: at least one, without repeats.

    Others than the likeliest have `MOST_DRAWN_ENTRIES` entries at most.
    """
    seen: list[StaticShapes] = []
    settled = {info.name: _settled(info, given) for info in inputs}
    if None not in settled.values():  # with 100,000 inputs each plan takes its time
        yield {name: shape for name, shape in settled.items() if shape is not None}
        return
    for channels in _CHANNELS:
        for image, sequence in zip(_IMAGE_SIZES, _SEQUENCE_SIZES, strict=True):
            sizes = {"batch": 1, "channels": channels, "image": image, "sequence": sequence}
            for guess, with_states in product(_UNKNOWN_RANK, (True, False)):
                choices = SizeChoices(inputs, given, demands, with_states=with_states)
                plan = _concrete(inputs, given, sizes, guess, choices)
                is_small = sum(map(prod, plan.values())) <= MOST_DRAWN_ENTRIES
                if plan not in seen and (is_small or not seen):
                    seen.append(plan)
                    yield plan


def _settled(info: TensorInfo, given: StaticShapes) -> StaticShape | None:
    """The shape that leaves no choice; None where there is one."""
    shape = given.get(info.name, info.shape)
    sizes = tuple(size for size in shape or () if isinstance(size, int))
    return None if shape is None or len(sizes) < len(shape) else sizes


def other_sizes(
    inputs: Sequence[TensorInfo],
    shapes: StaticShapes,
    given: StaticShapes,
    demands: InputDemands = NO_DEMANDS,
) -> Iterator[StaticShapes]:
    """`shapes` with every open size enlarged; then with the batch alone enlarged."""
    for only_batch in (False, True):
        choices = SizeChoices(inputs, given, demands)
        plan = {}
        for info in inputs:
            plan[info.name] = given.get(info.name) or _grown(
                info, shapes[info.name], choices, only_batch=only_batch
            )
        if plan != shapes:
            yield plan


def _grown(
    info: TensorInfo, shape: StaticShape, choices: SizeChoices, *, only_batch: bool
) -> StaticShape:
    if info.shape is None:
        return shape
    grown = []
    for axis, (size, now) in enumerate(zip(info.shape, shape, strict=True)):
        role = choices.role(info, axis)
        if isinstance(size, int) or role == "channels" or (only_batch and role != "batch"):
            grown.append(now)
            continue
        # 1 -> 2, 64 -> 96, 224 -> 336: still a multiple of what networks divide by
        grown.append(choices.take(info, axis, now + max(1, now // 2)))
    return tuple(grown)


def _concrete(
    inputs: Sequence[TensorInfo],
    given: StaticShapes,
    sizes: Mapping[str, int],
    unknown_rank: StaticShape,
    choices: SizeChoices,
) -> StaticShapes:
    plan: dict[str, StaticShape] = {}
    for info in inputs:
        if info.name in given:
            plan[info.name] = given[info.name]
        elif info.shape is None:
            plan[info.name] = unknown_rank
        else:
            plan[info.name] = tuple(
                size
                if isinstance(size, int)
                else choices.take(info, axis, sizes[choices.role(info, axis)])
                for axis, size in enumerate(info.shape)
            )
    return plan


def _axis_role(shape: tuple[Dim, ...], axis: int) -> str:
    name = shape[axis]
    if isinstance(name, str):
        for part, role in _ROLE_OF_NAME.items():
            if part in name.lower():
                return role
    if axis == 0:
        is_vector = len(shape) == 1 and isinstance(name, str) and name not in ("N", "n", "B", "b")
        return "sequence" if is_vector else "batch"
    if len(shape) not in (4, 5):
        return "sequence"
    last = shape[-1]
    channels_last = isinstance(last, int) and last <= 4 and not isinstance(shape[1], int)
    return "channels" if axis == (len(shape) - 1 if channels_last else 1) else "image"


def _check_symbols(declared: Mapping[str, TensorInfo], given: StaticShapes) -> None:
    settled: dict[str, tuple[int, str]] = {}
    for name, shape in given.items():
        for size, value in zip(declared[name].shape or (), shape, strict=False):
            if not isinstance(size, str):
                continue
            known, owner = settled.setdefault(size, (value, name))
            if known != value:
                raise UsageError(
                    f"The shapes given for inputs `{owner}` and `{name}` disagree on the size "
                    f"`{size}`: {known} and {value}."
                )
