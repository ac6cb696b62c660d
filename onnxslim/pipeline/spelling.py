"""How an option's value is written in a pipeline; `pipeline` reads it back.

Apart from the parser, which knows the registry of passes: a pass spells itself (`str(p)`) and must
not depend on what knows all passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from onnxslim.pipeline.options import OptionValue

NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?=[\s,:+]|$)")
_BARE = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.@-]*")
RESERVED: Mapping[str, OptionValue] = {"true": True, "false": False, "none": None}
INFINITE = {"inf": math.inf, "-inf": -math.inf}


def spell(name: str, options: Mapping[str, OptionValue]) -> str:
    """One item of a pipeline: `name:key=value:key=value`."""
    return ":".join((name, *(f"{key}={_spell_value(value)}" for key, value in options.items())))


def _spell_value(value: OptionValue) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_spell_atom, value)) or "+"
    return _spell_atom(value)


def _spell_atom(value: OptionValue) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(float(value)).replace("e+", "e")  # `+` joins lists
    if isinstance(value, str):
        return _spell_text(value)
    return str(value)


def _spell_text(text: str) -> str:
    taken = text in RESERVED or text in INFINITE or NUMBER.fullmatch(text)
    if _BARE.fullmatch(text) and not taken:
        return text
    return "'" + text.replace("'", "''") + "'"
