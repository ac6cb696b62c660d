"""Execution providers of onnxruntime: which are installed, and how sessions ask for one.

A provider is called by its short name, such as `OpenVINO` for `OpenVINOExecutionProvider`. None
stands for the processor, on which every build of onnxruntime computes what a provider declines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import onnxruntime as ort

from onnxslim.errors import UsageError
from onnxslim.pipeline.suggest import did_you_mean

CPU: Final = ("CPUExecutionProvider",)
_SUFFIX: Final = "ExecutionProvider"
_THREADS: Final = {  # the option of providers that have threads of their own
    "OpenVINO": "num_of_threads",
    "Xnnpack": "intra_op_num_threads",
}


def installed_providers() -> list[str]:
    """The short names of the providers of the installed onnxruntime."""
    return [name.removesuffix(_SUFFIX) for name in ort.get_available_providers()]


def provider_named(word: str | None) -> str | None:
    """The short name of a provider that is given in any spelling; None for the processor.

    Raises:
        UsageError: the installed onnxruntime does not have it.
    """
    if word is None:
        return None
    installed = installed_providers()
    wanted = word.lower().removesuffix(_SUFFIX.lower())
    found = next((name for name in installed if name.lower() == wanted), None)
    if found is None:
        raise UsageError(
            f"The installed onnxruntime {ort.__version__} has no provider `{word}`."
            f"{did_you_mean(word, installed)} It has {', '.join(installed)}; others come with "
            "other builds of onnxruntime, such as onnxruntime-gpu or onnxruntime-openvino."
        )
    return None if found + _SUFFIX in CPU else found


def full_name(provider: str) -> str:
    """What onnxruntime calls a provider."""
    return provider + _SUFFIX


def provider_list(provider: str | None, threads: int | None) -> Sequence[Any]:
    """The providers of a session, by preference, with their options.

    Args:
        provider: its short name.
        threads: of providers that have threads of their own; None: their own choice.
    """
    if provider is None:
        return CPU
    options = {}
    if threads is not None and provider in _THREADS:
        options[_THREADS[provider]] = str(threads)
    return ((full_name(provider), options), *CPU)
