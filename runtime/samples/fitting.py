"""Check that the user's arrays can be the inputs of a model, and convert them.

Owns: which array is for which input, and which conversions are harmless enough to be done without
asking. Scaling is not: only the user knows how the model was trained.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import LABEL, DataSettings
from onnxslim.pipeline.suggest import did_you_mean
from onnxslim.runtime.samples.user_values import at_position
from onnxslim.runtime.session import TensorInfo

LABELS: Final = (LABEL, "labels", "y", "target", "targets")
"""Names under which labels are found, unless an input has the name."""

_CASTS: Final = {("f", "f"), ("i", "i"), ("U", "O"), ("S", "O"), ("O", "O"), ("b", "b")}


@dataclass(frozen=True)
class ArrayNames:
    """Which array is for which input.

    Attributes:
        inputs: name of the array by name of the input.
        label: name of the labels; None where there are none.
    """

    inputs: Mapping[str, str]
    label: str | None

    @property
    def all(self) -> list[str]:
        """The arrays that are used, labels last."""
        return [*self.inputs.values(), *([] if self.label is None else [self.label])]


def choose_arrays(
    where: str,
    found: Collection[str],
    inputs: Sequence[TensorInfo],
    settings: DataSettings = DataSettings(),  # noqa: B008
) -> ArrayNames:
    """Which of the arrays `found` is for which input: by the user's word, by name, or by position.

    The only array beside labels is that of the only input, whatever its name.

    Raises:
        UsageError: an input has no array; the message names it and the arrays that exist.
    """
    if at_position(0) in found:
        return _by_position(where, found, inputs)
    said, label = _said(where, found, inputs, settings.map)
    if label is None:
        free = (key for key in LABELS if key in found and not has_input(inputs, key))
        label = next((key for key in free if key not in said.values()), None)
    others = [key for key in found if key != label]
    chosen: dict[str, str] = {}
    for info in inputs:
        name = said.get(info.name, info.name)
        if name not in found and len(inputs) == len(others) == 1 and others[0] not in LABELS:
            name = others[0]
        if name not in found:
            have = ", ".join(f"`{key}`" for key in found) or "none"
            raise UsageError(
                f"{where} has no array for input `{info.name}` of the model; it has {have}. Name "
                f"each array as the input, or say which is which, --map {info.name}=ARRAY, or what "
                f"the input holds: --fill {info.name}=VALUE."
            )
        chosen[info.name] = name
    return ArrayNames(chosen, label)


def _said(
    where: str, found: Collection[str], inputs: Sequence[TensorInfo], said: Mapping[str, str]
) -> tuple[Mapping[str, str], str | None]:
    """Arrays by input as the user said, and the labels; `label=y` and `y=label` mean the same."""
    arrays, label = {}, None
    for left, right in said.items():
        is_label = {left, right} & {LABEL} and not has_input(inputs, left)
        array = left if is_label and right == LABEL else right
        if array not in found:
            have = ", ".join(f"`{key}`" for key in found) or "none"
            raise UsageError(
                f"{where} has no array `{array}`, which --map names.{did_you_mean(array, found)} "
                f"It has {have}."
            )
        if is_label:
            label = array
        elif has_input(inputs, left):
            arrays[left] = array
        else:
            names = [info.name for info in inputs]
            raise UsageError(
                f"The model has no input `{left}`, which --map names.{did_you_mean(left, names)} "
                f"Its inputs are {', '.join(f'`{name}`' for name in names)}."
            )
    return arrays, label


def _by_position(where: str, found: Collection[str], inputs: Sequence[TensorInfo]) -> ArrayNames:
    """Parts of a tuple are the inputs in their order; one more part is the labels."""
    if len(found) == 1 != len(inputs):
        only_input(inputs, where)
    if len(found) not in (len(inputs), len(inputs) + 1):
        raise UsageError(
            f"{where} has {len(found)} parts; the model has {len(inputs)} "
            f"input{'s' * (len(inputs) != 1)}, and one more part may be the labels."
        )
    chosen: dict[str, str] = {info.name: at_position(number) for number, info in enumerate(inputs)}
    return ArrayNames(chosen, at_position(len(inputs)) if len(found) > len(inputs) else None)


def check_dtype(dtype: np.dtype, info: TensorInfo, where: str, *, is_scaled: bool = False) -> None:
    """Refuse arrays whose conversion to the type of the input is for the user to decide.

    Args:
        dtype: type of the array.
        info: the input.
        where: the array in words.
        is_scaled: whether the user said by what factor integers become floats.

    Raises:
        UsageError: the array holds Python objects, or its conversion could lose information.
    """
    wanted = info.dtype
    if wanted is None:
        raise UsageError(f"Input `{info.name}` is {info.kind}; samples of it cannot be given.")
    if dtype == wanted or _kinds(dtype, wanted) in _CASTS:
        return
    if is_scaled and needs_scale(dtype, info):
        return
    advice = f"Convert it as the model was trained, to {_type_name(wanted)}."
    if needs_scale(dtype, info):
        advice = (
            "Say by what factor it was scaled when the model was trained, for example --scale "
            f"1/255, or convert it: `array.astype(numpy.{_type_name(wanted)}) / 255`."
        )
    raise UsageError(
        f"{where} has the type {_type_name(dtype)}; the model needs {_type_name(wanted)}. {advice}"
    )


def needs_scale(dtype: np.dtype, info: TensorInfo) -> bool:
    """Whether an array holds integers, and the input wants floats."""
    wanted = info.dtype
    is_float = wanted is not None and (wanted.kind == "f" or wanted.isbuiltin == 2)
    return dtype.kind in "iu" and is_float


def check_scale(
    settings: DataSettings,
    dtypes: Mapping[str, np.dtype],
    inputs: Sequence[TensorInfo],
    where: str,
) -> None:
    """Refuse a `scale` where no input of floats is given as integers.

    Raises:
        UsageError: the scale would do nothing.
    """
    if settings.scale is None or any(needs_scale(dtypes[i.name], i) for i in inputs):
        return
    types = ", ".join(f"`{name}` is {_type_name(dtype)}" for name, dtype in dtypes.items())
    raise UsageError(
        f"The setting `scale` is for integers that become floats; in {where}, {types}. Leave it "
        "out."
    )


def _kinds(dtype: np.dtype, wanted: np.dtype) -> tuple[str, str]:
    pair = [{"u": "i"}.get(kind.kind, kind.kind) for kind in (dtype, wanted)]
    return (pair[0], pair[1])


def cast_array(
    array: np.ndarray, info: TensorInfo, where: str, scale: float | None = None
) -> np.ndarray:
    """`array`, converted to the type of the input; integers for floats times `scale`.

    Raises:
        UsageError: an integer does not fit, or a value is NaN.
    """
    wanted = cast("np.dtype", info.dtype)
    if wanted.kind == "O":
        return array.astype(str).astype(object) if array.dtype.kind != "S" else _decoded(array)
    if scale is not None and needs_scale(array.dtype, info):
        array = array * np.float32(scale)
    if array.dtype.kind in "iu" and array.dtype != wanted and array.size:
        limits = np.iinfo(wanted)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise UsageError(f"{where} has values that do not fit into {wanted.name}.")
    if array.dtype.kind == "f" and np.isnan(array).any():
        row = int(np.argwhere(np.isnan(array))[0][0]) if array.ndim else 0
        raise UsageError(f"{where} has a NaN, the first at index {row} of its first axis.")
    return np.ascontiguousarray(array, wanted).reshape(array.shape)


def _decoded(array: np.ndarray) -> np.ndarray:
    return np.char.decode(array, "utf-8").astype(object)


def _type_name(dtype: np.dtype) -> str:
    return "string" if dtype.kind in "OUS" else dtype.name


def group_size(inputs: Sequence[TensorInfo]) -> int:
    """Number of samples in one run: the fixed first size that all inputs share, else one."""
    sizes = {info.shape[0] for info in inputs if info.shape}
    only = sizes.pop() if len(sizes) == 1 else None
    return only if isinstance(only, int) and only > 0 else 1


def is_batchable(inputs: Sequence[TensorInfo]) -> bool:
    """Whether the declared shapes leave the first axis of every input open."""
    return bool(inputs) and all(
        info.shape and not isinstance(info.shape[0], int) for info in inputs
    )


def has_input(inputs: Sequence[TensorInfo], name: str) -> bool:
    """Whether an input of this name exists."""
    return any(info.name == name for info in inputs)


def only_input(inputs: Sequence[TensorInfo], where: str) -> TensorInfo:
    """The single input of a model, for arrays without a name.

    Raises:
        UsageError: there are several inputs, or none.
    """
    if len(inputs) == 1:
        return inputs[0]
    names = ", ".join(f"`{info.name}`" for info in inputs) or "none"
    raise UsageError(
        f"{where} gives an array without a name, but the model has {len(inputs)} inputs "
        f"({names}). Say what the others hold, --fill INPUT=VALUE, or give arrays by input name."
    )
