"""Everything of onnxslim that touches onnxruntime or data.

session   onnxruntime sessions: the one place that makes them
explain   what onnxruntime says when it fails, as a sentence
evaluate  the outputs of a small constant model
packed    a session straight from a packed file
samples   what models are run on
probes    what happens inside a model on the samples
measure   outputs, run time and accuracy of whole models
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
