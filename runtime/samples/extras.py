"""Libraries that only some users need: `pip install 'onnxslim-compiler[images]'`.

Owns: the sentence that asks for them.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Final, Literal

from onnxslim.errors import UsageError

Extra = Literal["images", "text", "audio", "train", "tune", "openvino", "tract"]


TRAINING: Final = ("torch", "train", "Passes that train")
"""What passes that train ask for."""


SEARCH: Final = ("optuna", "tune", "Searches over pipelines")
"""What `tune` asks for."""


def require_extra(module: str, extra: Extra, what: str) -> None:
    """Look whether a module of an extra is installed, without importing it.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec(module) is None:
        raise UsageError(_asking(module, extra, what))


def import_extra(module: str, extra: Extra, what: str) -> Any:
    """Import a module of an extra; `what` needs it.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(_asking(module, extra, what)) from error


def _asking(module: str, extra: Extra, what: str) -> str:
    name = module.partition(".")[0]
    return f"{what} need `{name}`, which is not installed: pip install 'onnxslim-compiler[{extra}]'"
