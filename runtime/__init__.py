"""Everything of onnxslim that touches onnxruntime or data."""

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
