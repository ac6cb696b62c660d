"""Write a pass and its options as text; `grammar` parses the text back.

Writing is apart from parsing because a pass spells itself (`str(p)`), while the parser depends on
the registry of all passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from onnxslim.pipeline.options import OptionValue

NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?=[\s,:+]|$)")
_UNQUOTED = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.@-]*")
RESERVED: Mapping[str, OptionValue] = {"true": True, "false": False, "none": None}
INFINITE = {"inf": math.inf, "-inf": -math.inf}


def spell(name: str, options: Mapping[str, OptionValue]) -> str:
    """One pass as a pipeline spells it: `name:key=value:key=value`."""
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
    means_other = text in RESERVED or text in INFINITE or NUMBER.fullmatch(text)
    if _UNQUOTED.fullmatch(text) and not means_other:
        return text
    return "'" + text.replace("'", "''") + "'"
