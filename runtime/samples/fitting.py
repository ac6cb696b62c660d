"""Check that the user's arrays can be the inputs of a model, and convert them.

Owns: which conversions are harmless enough to be done without asking. Scaling is not: only the user
knows how the model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.runtime.session import TensorInfo

LABELS: Final = ("label", "labels")
_CASTS: Final = {("f", "f"), ("i", "i"), ("U", "O"), ("S", "O"), ("O", "O"), ("b", "b")}


def check_names(name: str, found: Mapping[str, object], inputs: Sequence[TensorInfo]) -> None:
    """Refuse arrays that lack one for an input.

    Raises:
        UsageError: an input has no array; the message names it and the arrays that exist.
    """
    missing = [info.name for info in inputs if info.name not in found]
    if missing:
        have = ", ".join(f"`{key}`" for key in found) or "none"
        raise UsageError(
            f"{name} has no array for input `{missing[0]}` of the model; it has {have}. Name "
            "each array as the input."
        )


def check_dtype(dtype: np.dtype, info: TensorInfo, where: str) -> None:
    """Refuse arrays whose conversion to the type of the input is for the user to decide.

    Raises:
        UsageError: the array holds Python objects, or its conversion could lose information.
    """
    wanted = info.dtype
    if wanted is None:
        raise UsageError(f"Input `{info.name}` is {info.kind}; samples of it cannot be given.")
    if dtype == wanted or _kinds(dtype, wanted) in _CASTS:
        return
    advice = f"Convert it as the model was trained, to {_type_name(wanted)}."
    if dtype.kind in "iu" and wanted.kind == "f":
        advice = (
            "Convert it as the model was trained (often scaled and shifted): "
            f"`array.astype(numpy.{_type_name(wanted)}) / 255`, for example."
        )
    raise UsageError(
        f"{where} has the type {_type_name(dtype)}; the model needs {_type_name(wanted)}. {advice}"
    )


def _kinds(dtype: np.dtype, wanted: np.dtype) -> tuple[str, str]:
    pair = [{"u": "i"}.get(kind.kind, kind.kind) for kind in (dtype, wanted)]
    return (pair[0], pair[1])


def cast_array(array: np.ndarray, info: TensorInfo, where: str) -> np.ndarray:
    """`array`, converted to the type of the input.

    Raises:
        UsageError: an integer does not fit, or a value is NaN.
    """
    wanted = cast("np.dtype", info.dtype)
    if wanted.kind == "O":
        return array.astype(str).astype(object) if array.dtype.kind != "S" else _decoded(array)
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
        f"({names}). Give arrays by input name."
    )
