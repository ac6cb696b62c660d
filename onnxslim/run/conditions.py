"""What bears on every step of a run, for the cache of steps: data, settings, versions, machine.

Every field of `RunSettings` counts, those that are added later too, but for what only says how the
run is shown and kept.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Final

from onnxslim.errors import UsageError
from onnxslim.io.staging import scratch_folder
from onnxslim.pipeline.step_cache import Conditions, StepCache
from onnxslim.run.record import cpu_info, onnxruntime_distribution, processor_name
from onnxslim.run.settings import RunSettings

_SOURCES: Final = frozenset({"calibration", "evaluation", "training", "progress", "cache"})
"""Fields of `RunSettings` that count by what they hold, or not at all."""

_COMPUTING: Final = (
    *("onnx", "onnxruntime", "onnxruntime-gpu", "onnx-graphsurgeon"),
    *("numpy", "scipy", "ml-dtypes", "networkx", "tensorly", "protobuf", "pillow", "tokenizers"),
    *("soundfile", "constriction", "zstandard"),
)
_TRAINING: Final = ("torch",)
_SETS: Final = ("avx", "fma", "sse4", "amx", "asimd", "sve", "i8mm", "bf16")


def step_cache(settings: RunSettings) -> StepCache | None:
    """The cache of a run with these settings; None where none is wanted.

    Raises:
        UsageError: its folder is a file, or data cannot be read.
    """
    if settings.cache is None:
        return None
    if settings.cache.exists() and not settings.cache.is_dir():
        raise UsageError(f"The cache `{settings.cache}` is a file; give the path of a folder.")
    return StepCache(settings.cache, conditions(settings))


def conditions(settings: RunSettings) -> Conditions:
    """What bears on all steps of a run with these settings.

    Raises:
        UsageError: data cannot be read.
    """
    plain = {item.name: getattr(settings, item.name) for item in fields(settings)}
    digests = settings.content_sha256()
    own = {"train": digests.pop("train")} if "train" in digests else {}
    training: dict[str, object] = {"versions": _versions(_TRAINING), **own}
    always = {
        "settings": {name: value for name, value in plain.items() if name not in _SOURCES},
        "data": digests,
        "versions": {
            "python": platform.python_version(),
            **_versions({*_COMPUTING, onnxruntime_distribution()}),
        },
        "machine": _machine(is_timed=settings.measure),
    }
    return Conditions(always, training, _unknown(digests), _unknown(own))


def _unknown(digests: Mapping[str, str | None]) -> tuple[str, ...]:
    return tuple(f"what `{name}` measures or gives" for name, found in digests.items() if not found)


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _machine(*, is_timed: bool) -> dict[str, object]:
    """What kernels depend on: the sets of instructions; where time is measured, the processor."""
    flags = next((v.split() for k, v in cpu_info() if k in ("flags", "Features")), ())
    found: dict[str, object] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "instructions": sorted(flag for flag in flags if flag.startswith(_SETS)),
    }
    if is_timed:
        found |= {"processor": processor_name(), "processors": _processors()}
    return found


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder(given: str | os.PathLike[str] | None) -> Path | None:
    """The folder of the cache as an argument gives it; "" and None: none."""
    return Path(given) if given else None


@contextmanager
def cache_while(given: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder for runs that share steps: the one that is given, or one that goes with them."""
    if given:
        yield Path(given)
        return
    with scratch_folder() as made:
        yield made
