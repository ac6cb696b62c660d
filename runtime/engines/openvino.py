"""Models in OpenVINO, on the processor, in float32 where the file says so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.runtime.engines.opened import EngineFailure, Feeds, in_one_line
from onnxslim.runtime.samples.extras import import_extra


class OpenvinoModel:
    """A model in OpenVINO; see `OpenedModel`."""

    def __init__(self, path: Path, feeds: Feeds, threads: int | None) -> None:
        """Compile the file at `path`.

        Raises:
            UsageError: OpenVINO is not installed.
            EngineFailure: OpenVINO refuses the model.
        """
        openvino: Any = import_extra("openvino", "openvino", "Runs in OpenVINO")
        self.engine = f"OpenVINO {str(openvino.__version__).partition('-')[0]}"
        # by default OpenVINO computes float32 models in bfloat16 where the processor has it
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            core = openvino.Core()
            self._model = core.compile_model(core.read_model(str(path)), "CPU", settings)
            self._request = self._model.create_infer_request()
        except Exception as error:  # OpenVINO raises RuntimeError and more, with no common base
            raise EngineFailure(f"{self.engine} refuses the model: {in_one_line(error)}") from error

    def timed(self, feeds: Feeds) -> tuple[Sequence[np.ndarray], float]:
        """See `OpenedModel`."""
        inputs = [np.ascontiguousarray(array) for array in feeds.values()]
        try:
            started = time.perf_counter()
            found = self._request.infer(inputs)
            ms = 1000 * (time.perf_counter() - started)
        except Exception as error:
            raise EngineFailure(
                f"{self.engine} fails on the model: {in_one_line(error)}"
            ) from error
        return [np.array(found[output]) for output in self._model.outputs], ms

    def close(self) -> None:
        """See `OpenedModel`."""
        self._request = self._model = None
