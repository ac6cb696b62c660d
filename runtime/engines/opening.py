"""Model files opened in an engine that is asked for by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from onnxslim.errors import UsageError
from onnxslim.pipeline.suggest import did_you_mean
from onnxslim.runtime.engines.opened import Feeds, OpenedModel
from onnxslim.runtime.engines.openvino import OpenvinoModel
from onnxslim.runtime.engines.tract import TractModel
from onnxslim.runtime.engines.web import WebModel, web_home
from onnxslim.runtime.samples.extras import require_extra

_OPENERS: Final[Mapping[str, Callable[[Path, Feeds, int | None], OpenedModel]]] = {
    "openvino": OpenvinoModel,
    "tract": TractModel,
    "web": WebModel,
}
ENGINES: Final = tuple(_OPENERS)
"""The engines in which results can be run."""


def require_engine(engine: str) -> None:
    """Look whether an engine is installed, before any work.

    Raises:
        UsageError: it is not, or there is none of that name.
    """
    _check_name(engine)
    if engine == "web":
        web_home()
    elif engine == "openvino":
        require_extra("openvino", "openvino", "Runs in OpenVINO")
    else:
        require_extra("tract", "tract", "Runs in tract")


def _check_name(engine: str) -> None:
    if engine not in _OPENERS:
        raise UsageError(
            f"There is no engine `{engine}` to run results in.{did_you_mean(engine, _OPENERS)} "
            f"They are {', '.join(ENGINES)}."
        )


def open_in(engine: str, path: Path, feeds: Feeds, threads: int | None = None) -> OpenedModel:
    """Open the file at `path` in an engine.

    Args:
        engine: its name, one of `ENGINES`.
        path: of the model.
        feeds: inputs like those that the model will get, by name and in the model's order.
        threads: for engines that take a number; None: their own choice.

    Raises:
        UsageError: there is no such engine, or it is not installed.
        EngineFailure: the engine refuses the model.
    """
    _check_name(engine)
    return _OPENERS[engine](path, feeds, threads)
