"""The arguments of public functions, in any of their spellings, as what the core takes.

Owns: the sentences for arguments that are wrong. Everything is checked before a model is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from onnxslim.errors import UsageError
from onnxslim.io.model import Model, ModelSource
from onnxslim.pipeline.data_settings import DataSettings, DataWords
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.grammar import Pipeline, build_pass, parse_pipeline
from onnxslim.pipeline.options import Interval
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.policy import Goal, GoalWord
from onnxslim.pipeline.recipe import GOALS, SEED, THREADS, read_floors
from onnxslim.pipeline.targets import target_of

PassesArgument = str | Pipeline | Pass | Iterable[Pass | str]
"""A pipeline as text or parsed, a pass, or several; text among several is a pipeline, too."""

KindWord = Literal["classes", "embedding", "hidden-states", "token-logits", "values"]
FloorWord = Literal[
    "max-drop", "min-agreement", "min-sqnr", "min-cosine", "min-row-cosine", "max-kl", "max-row-kl",
    "max_drop", "min_agreement", "min_sqnr", "min_cosine", "min_row_cosine", "max_kl", "max_row_kl",
]  # fmt: skip


def loaded(model: ModelSource | Model) -> Model:
    """The model, read where it is not read yet.

    Raises:
        UsageError: there is no such file.
        ModelError: it is no model.
    """
    return model if isinstance(model, Model) else Model.load(model)


def file_of(model: ModelSource | Model) -> Path | None:
    """The file of the model; None: it was made in memory."""
    if isinstance(model, Model):
        return model.origin.path
    return Path(model) if isinstance(model, str | os.PathLike) else None


def parsed(passes: PassesArgument) -> Pipeline:
    """The pipeline of the argument `passes`.

    Raises:
        UsageError: the text is wrong, or an item is no pass.
    """
    if isinstance(passes, Pipeline):
        return passes
    if isinstance(passes, str):
        return parse_pipeline(passes)
    items: list[object] = [*passes] if isinstance(passes, Iterable) else [passes]
    steps: list[Pass] = []
    for item in items:
        if isinstance(item, str):
            steps.extend(parse_pipeline(item).passes)
        elif isinstance(item, Pass):
            steps.append(item)
        else:
            call = f" Make one: `{item.__name__}()`." if isinstance(item, type) else ""
            raise UsageError(f"`passes` holds {_kind(item)}, which is no pass.{call}")
    if not steps:
        raise UsageError("`passes` is empty. Give at least one pass, such as `simplify`.")
    return Pipeline(tuple(steps))


def for_target(pipeline: Pipeline, target: str | None) -> Pipeline:
    """The pipeline with `retarget` at its end, where a target is asked for.

    Raises:
        UsageError: there is no such target, or the pipeline ends for another.
    """
    if target is None:
        return pipeline
    engine, last = target_of(target), pipeline.passes[-1] if pipeline.passes else None
    if last is not None and last.engine not in (None, engine.name):
        raise UsageError(f"The target is `{engine.name}`, and the pipeline ends in `{last}`.")
    if engine.is_default or (last is not None and last.engine is not None):
        return pipeline
    return replace(pipeline, passes=(*pipeline.passes, build_pass("retarget", {"to": target})))


def data_settings(data: DataSettings | DataWords | Mapping[str, object] | None) -> DataSettings:
    """The settings of the argument `data`.

    Raises:
        UsageError: a name is unknown, or a value is none for it.
    """
    if isinstance(data, DataSettings):
        return data
    if data is not None and not isinstance(data, Mapping):
        raise UsageError(f"`data` must be settings by name; got {_kind(data)}.")
    return DataSettings.of({} if data is None else data)


def floors_to_hold(floors: Floors | Mapping[FloorWord, float] | None) -> Floors:
    """The floors of the argument `floors`; None: none.

    Raises:
        UsageError: a name is unknown, or a value is out of range.
    """
    if floors is None:
        return Floors()
    if isinstance(floors, Floors):
        return floors
    if not isinstance(floors, Mapping):
        raise UsageError(f"`floors` must be limits by name; got {_kind(floors)}.")
    read = read_floors({str(name).replace("_", "-"): value for name, value in floors.items()})
    return Floors(
        read.get("max_drop"),
        read.get("min_agreement"),
        read.get("min_sqnr"),
        read.get("min_cosine"),
        read.get("min_row_cosine"),
        read.get("max_kl"),
        read.get("max_row_kl"),
    )


def goal_of(word: GoalWord) -> Goal:
    """The goal that is called so.

    Raises:
        UsageError: there is none.
    """
    try:
        return Goal(word)
    except ValueError:
        words = ", ".join(GOALS)
        raise UsageError(f"The goal must be one of {words}; got {word!r}.") from None


def refuse_both(first: object, second: object, names: str) -> None:
    """Refuse two arguments that mean the same.

    Raises:
        UsageError: both are given.
    """
    if first is not None and second is not None:
        raise UsageError(f"{names} mean the same; give one of them.")


def check_numbers(*, seed: int, threads: int | None) -> None:
    """Refuse a seed or a number of threads that cannot be.

    Raises:
        UsageError: one is no integer, or out of range.
    """
    _check_whole("seed", seed, SEED)
    if threads is not None:
        _check_whole("threads", threads, THREADS)


def _check_whole(name: str, value: object, limits: Interval) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not limits.accepts(value):
        raise UsageError(f"`{name}` must be an integer {limits.describe()}; got {value!r}.")


def _kind(value: object) -> str:
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    return f"{value!r} of type {type(value).__name__}"
