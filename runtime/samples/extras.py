"""Libraries that only some users need: `pip install 'onnxslim-compiler[images]'`.

Owns: the sentence that asks for them.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from onnxslim.errors import UsageError

Extra = Literal["images", "text", "audio", "train"]


def import_extra(module: str, extra: Extra, what: str) -> Any:
    """Import a module of an extra; `what` needs it.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        raise UsageError(
            f"{what} need `{name}`, which is not installed: pip install "
            f"'onnxslim-compiler[{extra}]'"
        ) from error
