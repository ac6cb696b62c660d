"""The part of onnxslim that touches onnxruntime and data.

watch     an end to runs that take too long or too much memory
providers  execution providers by name: which are installed
session   the one place that opens onnxruntime sessions
explain   errors of onnxruntime as a sentence
evaluate  outputs of a small constant model
packed    a session from a packed file
samples   the samples that models are run on
probes    statistics of the inside of a model on samples
engines   other engines, where they are installed
measure   measurements of whole models: outputs, run time, accuracy
training  graphs as functions that torch differentiates
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxslim.runtime.packed import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    # onnxruntime is imported when a session is asked for, not before
    if name == "load":
        from onnxslim.runtime.packed import load

        return load
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`.")
