"""Open an onnxruntime session from a packed file, without unpacking it to the disk."""

from __future__ import annotations

import os
from collections.abc import Sequence

import onnxruntime as ort

from onnxslim.io.model import Model
from onnxslim.runtime.providers import CPU
from onnxslim.runtime.session import plain_session


def load(
    path: str | os.PathLike[str],
    options: ort.SessionOptions | None = None,
    providers: Sequence[str] = CPU,
) -> ort.InferenceSession:
    """A session of onnxruntime with the model in `path`: a packed file, or an .onnx file.

    Nothing is written to the disk. The session keeps the unpacked weights in memory. Without
    `options` it has the defaults of onnxruntime; `providers` come by preference.

    Raises:
        UsageError: there is no such file.
        ModelError: it is damaged, or no model.
        RuntimeFailure: onnxruntime refuses the model.
    """
    return plain_session(Model.load(path), options or ort.SessionOptions(), providers)
