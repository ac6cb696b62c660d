"""Models in tract."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnxslim.runtime.engines.opened import EngineFailure, Feeds, in_one_line
from onnxslim.runtime.samples.extras import import_extra

_TYPES: Final = {
    "float16": "f16",
    "float32": "f32",
    "float64": "f64",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "bool": "bool",
}


class TractModel:
    """A model in tract; see `OpenedModel`."""

    def __init__(self, path: Path, feeds: Feeds, threads: int | None) -> None:
        """Load the file at `path`; tract uses one thread.

        Sizes that the file leaves open stay open, where tract can do with that: shapes inside the
        file may name them. Else they are those of `feeds`.

        Raises:
            UsageError: tract is not installed.
            EngineFailure: tract refuses the model.
        """
        tract: Any = import_extra("tract", "tract", "Runs in tract")
        self.engine = f"tract {tract.version()}"
        failure: Exception | None = None
        for fixed in ({}, feeds):
            try:
                self._model = _runnable(tract, path, fixed)
                self.timed(feeds)
            except Exception as error:  # its bindings raise TractError, and what the data raise
                failure = error
            else:
                return
        assert failure is not None
        why = in_one_line(failure)
        raise EngineFailure(f"{self.engine} refuses the model: {why}") from failure

    def timed(self, feeds: Feeds) -> tuple[Sequence[np.ndarray], float]:
        """See `OpenedModel`."""
        inputs = [np.ascontiguousarray(array) for array in feeds.values()]
        try:
            started = time.perf_counter()
            found = self._model.run(inputs)
            ms = 1000 * (time.perf_counter() - started)
            return [np.array(tensor.to_numpy()) for tensor in found], ms
        except Exception as error:
            raise EngineFailure(
                f"{self.engine} fails on the model: {in_one_line(error)}"
            ) from error

    def close(self) -> None:
        """See `OpenedModel`."""
        self._model = None


def _runnable(tract: Any, path: Path, fixed: Feeds) -> Any:
    model = tract.onnx().load(str(path))
    for index, array in enumerate(fixed.values()):
        model.set_input_fact(index, _fact(array))
    return model.into_model().into_runnable()


def _fact(array: np.ndarray) -> str:
    """Sizes and type of an input, as tract spells them."""
    kind = _TYPES.get(array.dtype.name)
    if kind is None:
        raise ValueError(f"tract has no inputs of type {array.dtype.name}")
    return ",".join([*map(str, array.shape), kind])
