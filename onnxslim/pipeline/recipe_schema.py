"""The JSON Schema of recipes, by which editors complete and check them.

Derived from what reads recipes: limits of settings, settings of data, options of passes. TOML has
the types of JSON, so a schema of the parsed file is one of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from onnxslim.pipeline import registry
from onnxslim.pipeline.data_settings import SETTINGS, option_name
from onnxslim.pipeline.options import Constraint, Interval, OneOf, OptionSpec
from onnxslim.pipeline.output_words import NAMED_KINDS
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.recipe import FLOORS, GOALS, SEED, SOURCES, THREADS
from onnxslim.pipeline.targets import targets

Schema = dict[str, Any]

_TYPES: Final[Mapping[type, str]] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
}
_FLAGS: Final[Mapping[str, str]] = {
    "force": "Keep steps that do not pay.",
    "verify": "Compare outputs after every step.",
    "latency": "Measure latency.",
    "strict": "Exit code 4 where a step was left out or changed nothing.",
    "floor": "Hold the default floors where `floors` sets none.",
}
_ANY_PATH: Final = "A path from the recipe's folder, or module:function."


def recipe_schema() -> Schema:
    """The schema; passes of other distributions are in it where they are installed."""
    names = registry.names()
    properties: Schema = {
        "passes": {
            "description": "The pipeline, as text or as a table for each pass.",
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/pass"}},
            ],
        },
        **{name: {"type": "string", "description": _ANY_PATH} for name in SOURCES},
        "target": {"enum": list(targets()), "description": "The engine that the file is for."},
        "provider": {
            "type": "string",
            "description": "The execution provider on which models are verified and timed.",
        },
        "goal": {"enum": list(GOALS), "description": "Which may not get worse."},
        **{name: {"type": "boolean", "description": text} for name, text in _FLAGS.items()},
        "threads": _limited(THREADS, "integer") | {"description": "Threads of onnxruntime."},
        "seed": _limited(SEED, "integer") | {"description": "Seed of all randomness."},
        "floors": _table({name: _limited(limits, "number") for name, limits in FLOORS.items()}),
        "data": _table({option_name(name): _setting(name) for name in SETTINGS}),
        "output-kinds": {"type": "object", "additionalProperties": {"enum": list(NAMED_KINDS)}},
        "input-shapes": {
            "type": "object",
            "additionalProperties": {
                "type": "array",
                "items": {"type": "integer", "exclusiveMinimum": 0},
            },
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of onnxslim",
        **_table(properties),
        "$defs": {
            "pass": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"enum": list(names)}},
                "allOf": [_options_where(registry.get(name)) for name in names],
            }
        },
    }


def _table(properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _options_where(rewrite: type[Pass]) -> Schema:
    """The options of a table whose name is that of a pass."""
    options = {spec.name: _option(spec) for spec in rewrite.options()}
    own = _table({"name": {"description": _summary(rewrite)}, **options})
    return {"if": {"properties": {"name": {"const": rewrite.name}}}, "then": own}


def _summary(rewrite: type[Pass]) -> str:
    return (rewrite.__doc__ or "").strip().splitlines()[0]


def _option(spec: OptionSpec) -> Schema:
    one = _limited(spec.constraint, _TYPES[spec.type])
    words: list[Schema] = []
    if spec.optional and spec.type is not str:
        words.append({"const": "auto"})
    if getattr(spec.constraint, "true", None) is not None:
        words.append({"type": "boolean"})
    if spec.is_list:
        words.append({"type": "array", "items": one})
    found = {"anyOf": [one, *words]} if words else one
    return {**found, "description": spec.help}


def _limited(constraint: Constraint, kind: str) -> Schema:
    found: Schema = {"type": kind}
    if isinstance(constraint, OneOf):
        return {"enum": list(constraint.choices)}
    if isinstance(constraint, Interval):
        low = "exclusiveMinimum" if constraint.open_left else "minimum"
        high = "exclusiveMaximum" if constraint.open_right else "maximum"
        limits = {low: constraint.low, high: constraint.high}
        found |= {word: value for word, value in limits.items() if abs(value) != float("inf")}
    return found


def _setting(name: str) -> Schema:
    setting = SETTINGS[name]
    words = sorted(kind.value for kind in setting.kinds)
    return {"description": f"{setting.help} For {' and '.join(words)}; {setting.metavar}."}
