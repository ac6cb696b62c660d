"""`StepCache`: what steps of a pipeline came to, kept by the content of all that bears on it.

A step is deterministic but for the clock, so its result can stand for it whenever the same models
meet the same steps under the same conditions: pipelines that begin alike share the steps that they
begin with, and a run that was interrupted goes on where it was. The key of a result is a sha256
over the model before, the models that steps look back to, the steps with their options and the
files that options name, the policy, and the conditions of the run (data, seed, versions, sources
of onnxslim, processor: see `run.conditions`). What is found is held against its own digest before
it is believed.

Owns: keys, and results as bytes. Not here: files (see `io.content_store`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from onnxslim.errors import OnnxslimError
from onnxslim.graph.wire import Payload
from onnxslim.io import files
from onnxslim.io.content_store import ContentStore
from onnxslim.io.model import Model
from onnxslim.pipeline.passes import Context, Pass, unrolled_members
from onnxslim.report import LatencyPair, StepReport

_WEIGHT_BYTES: Final = 1 << 16  # smaller weights are kept with the rest of their model
_SOURCES: Final = ("onnxslim", "onnxslim.passes", "onnxslim.runtime")
_SOURCE_ENDINGS: Final = (".py", ".bin", ".so", ".pyd", ".toml")
_SERVICES: Final = frozenset(
    {
        *("evaluate", "calibration", "seeded", "accuracy", "labelled", "trainer", "stopwatch"),
        *("progress", "why_not_same", "names", "model", "reference", "target"),
        "engine",  # that of the pass that goes last
    }
)
"""Fields of a `Context` that follow from the conditions of the run, or are models."""


@dataclass(frozen=True)
class Conditions:
    """What bears on every step of a run, as plain data.

    Attributes:
        always: on all steps.
        training: on steps that train.
        unknown: data that may be others each time and bear on all steps, in words; with any,
            nothing is kept.
        unknown_training: the same, on steps that train.
    """

    always: Mapping[str, object]
    training: Mapping[str, object] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    unknown_training: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepOutcome:
    """What a bundle of steps came to.

    Attributes:
        steps: their reports.
        kept: the model after them; None: they were dropped, or changed nothing.
        target: the model whose layers lossy steps reproduce from then on, where they moved it.
        seconds: the time that they took, verification included.
        notes: what was learnt of the verification meanwhile.
        verified_on: as the prover says it afterwards.
    """

    steps: list[StepReport]
    kept: Model | None = None
    target: Model | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    verified_on: str | None = None


class _KeptOutcome(msgspec.Struct, frozen=True):
    """An outcome as it is kept; a model is the content of its file without large weights."""

    steps: list[StepReport]
    kept: bytes | None
    target: bytes | None
    seconds: float
    notes: list[str]
    verified_on: str | None


class StepCache:
    """Outcomes of steps in a folder.

    Args:
        folder: where they lie; it is made when something is kept.
        conditions: what bears on all steps of the run.

    Attributes:
        notes: what the user should know: why steps were not kept.
    """

    def __init__(self, folder: Path, conditions: Conditions) -> None:
        self.notes: list[str] = []
        self._store, self._conditions = ContentStore(folder), conditions
        self._digests: dict[int, tuple[weakref.ref[Model], str]] = {}
        self._is_writable = True

    # ---------------------------------------------------------------------- keys

    def key(
        self, models: Mapping[str, Model | None], bundle: Sequence[Pass], facts: object
    ) -> str | None:
        """What the outcome of `bundle` is kept by; None where it cannot be kept.

        Args:
            models: the model before it and those that it looks back to, by their part in it.
            bundle: steps that are kept or dropped together.
            facts: all else that bears on it, as plain data.
        """
        stages = [stage for step in bundle for stage in unrolled_members(step)]
        unknown = self._conditions.unknown
        conditions: dict[str, object] = {"always": self._conditions.always}
        if any(stage.trains for stage in stages):
            unknown += self._conditions.unknown_training
            conditions["training"] = self._conditions.training
        given = [model for model in models.values() if model is not None]
        if any(_is_renumbered(model) for model in given):
            unknown += ("models whose inputs or outputs a pass made shorter",)
        sources = {type(stage).__module__.partition(".")[0] for stage in stages}
        own = {name: sources_sha256(name) for name in sorted(sources - {_SOURCES[0]})}
        unknown += tuple(f"the source of `{name}`" for name, found in own.items() if not found)
        if unknown:
            self._note(f"Steps are not kept: {unknown[0]} may differ each time.")
            return None
        return _sha256(
            {
                **conditions,
                "sources": {**own, **{name: sources_sha256(name) for name in _SOURCES}},
                "models": {part: model and self.digest(model) for part, model in models.items()},
                "steps": [[str(step), *_named_files(step)] for step in bundle],
                "facts": facts,
            }
        )

    def digest(self, model: Model) -> str:
        """The digest of a model as the file that it would be."""
        known = self._digests.get(id(model))
        if known is None or known[0]() is not model:
            return self._parts(model)[0]
        return known[1]

    def _parts(self, model: Model) -> tuple[str, bytes, dict[str, Payload]]:
        content, weights = model.parts(_WEIGHT_BYTES)
        digest = hashlib.sha256(content).hexdigest()
        self._digests = {i: known for i, known in self._digests.items() if known[0]() is not None}
        self._digests[id(model)] = (weakref.ref(model), digest)
        return digest, content, weights

    # ------------------------------------------------------------------ outcomes

    def find(self, key: str, before: Model) -> StepOutcome | None:
        """The outcome that is kept by `key`, whole and as it was; None where there is none.

        Args:
            key: of the bundle.
            before: the model before it, whose origin its result has.
        """
        body = self._store.read(key)
        if body is None:
            return None
        try:
            found = msgspec.msgpack.decode(body, type=_KeptOutcome)
            kept = self._restored(found.kept, before)
            target = kept if found.target == found.kept else self._restored(found.target, before)
        except (OnnxslimError, OSError, msgspec.DecodeError):
            self._store.remove(key)
            return None
        for step in found.steps:
            step.from_cache = True
        return StepOutcome(
            found.steps, kept, target, found.seconds, tuple(found.notes), found.verified_on
        )

    def _restored(self, content: bytes | None, before: Model) -> Model | None:
        """The model that was kept.

        Raises:
            OSError: its weights are gone, or are others.
        """
        if content is None:
            return None
        model = Model.of_parts(content, self._store.weights, before.origin)
        if self.digest(model) != hashlib.sha256(content).hexdigest():
            raise FileNotFoundError("weights")
        return model

    def keep(self, key: str, outcome: StepOutcome) -> None:
        """Keep an outcome; where that fails, a note says so, and the run goes on."""
        given = [model for model in (outcome.kept, outcome.target) if model is not None]
        if not self._is_writable or any(_is_renumbered(model) for model in given):
            return
        contents: dict[int, bytes] = {}
        weights: dict[str, Payload] = {}
        for model in given:
            _, contents[id(model)], own = self._parts(model)
            weights |= own
        entry = _KeptOutcome(
            outcome.steps,
            contents.get(id(outcome.kept)),
            contents.get(id(outcome.target)),
            outcome.seconds,
            list(outcome.notes),
            outcome.verified_on,
        )
        self._write(key, entry, weights)

    def pair(self, before: Model, after: Model) -> LatencyPair | None:
        """Latency of two whole models, where it is kept."""
        body = self._store.read(self._pair_key(before, after))
        with suppress(msgspec.DecodeError):
            return None if body is None else msgspec.msgpack.decode(body, type=LatencyPair)
        return None

    def keep_pair(self, before: Model, after: Model, pair: LatencyPair | None) -> None:
        """Keep the latency of two whole models."""
        if pair is not None and self._is_writable and not self._conditions.unknown:
            self._write(self._pair_key(before, after), pair, {})

    def _pair_key(self, before: Model, after: Model) -> str:
        models = [self.digest(before), self.digest(after)]
        sources = [sources_sha256(name) for name in _SOURCES]
        return _sha256({"timed": models, "always": self._conditions.always, "sources": sources})

    def _write(self, key: str, entry: object, weights: Mapping[str, Payload]) -> None:
        body = msgspec.msgpack.encode(entry, enc_hook=_plain)
        try:
            self._store.write(key, body, weights)
        except OSError as error:
            self._is_writable = False
            why = error.strerror or type(error).__name__
            self._note(f"Steps are not kept in `{self._store.folder}`: {why}.")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class KeptSteps:
    """Steps of which the outcome is kept.

    Attributes:
        specs: as a pipeline spells them.
        seconds: that they took.
        used: when the outcome was made or found last, in seconds since 1970.
    """

    specs: tuple[str, ...]
    seconds: float
    used: float


def kept_steps(store: ContentStore) -> list[KeptSteps]:
    """The steps that a folder keeps, those first that were used last."""
    found = []
    for file in reversed(store.kept()):
        body = store.read(file.path.name, is_use=False) if file.is_entry else None
        with suppress(msgspec.DecodeError):
            if body is not None:
                kept = msgspec.msgpack.decode(body, type=_KeptOutcome)
                specs = tuple(step.spec for step in kept.steps)
                found.append(KeptSteps(specs, kept.seconds, file.used))
    return found


def context_facts(context: Context) -> dict[str, object]:
    """What a context holds beside services and models: each field that is plain data."""
    names = [item.name for item in fields(context) if item.name not in _SERVICES]
    return {name: getattr(context, name) for name in names}


@cache
def sources_sha256(package: str) -> str | None:
    """The sha256 of all sources of a package or module; None where it has none in files."""
    module = sys.modules.get(package)
    spec = getattr(module, "__spec__", None) or _spec_of(package)
    if spec is None:
        return None
    digest, paths = hashlib.sha256(), sorted(_source_files(spec))
    for name, path in paths:
        digest.update(f"{name}\0{files.sha256_of(path)}\0".encode())
    return digest.hexdigest() if paths else None


def _spec_of(package: str) -> Any:
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(package)
    return None


def _source_files(spec: Any) -> Iterator[tuple[str, Path]]:
    """Sources by their names in the package."""
    for place in spec.submodule_search_locations or ():
        for folder, _, names in os.walk(place, followlinks=True):
            for path in (Path(folder, name) for name in names):
                if path.suffix in _SOURCE_ENDINGS:
                    yield path.relative_to(place).as_posix(), path
    if not spec.submodule_search_locations and spec.has_location and spec.origin:
        yield Path(spec.origin).name, Path(spec.origin)


def _named_files(step: Pass) -> Iterator[str]:
    """Digests of the files that options of a step name."""
    for member in dict.fromkeys((step, *unrolled_members(step))):
        for _, value in member.set_options():
            for text in _texts(value):
                path = Path(text)
                with suppress(OSError, ValueError):  # most texts are no paths
                    if path.is_file():
                        yield files.sha256_of(path)


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        return (value,)
    return (text for text in value if isinstance(text, str)) if isinstance(value, tuple) else ()


def _is_renumbered(model: Model) -> bool:
    """Whether callers have to give or get something else; a file does not say how that came."""
    tensors = (*model.graph.inputs, *model.graph.outputs)
    words = ("kept", "renumbered")
    return any(getattr(tensor, word, None) is not None for tensor in tensors for word in words)


def _sha256(data: object) -> str:
    text = msgspec.json.encode(data, enc_hook=_plain, order="deterministic")
    return hashlib.sha256(text).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(f"{type(value).__name__} in what a step depends on")
