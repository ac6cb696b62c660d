"""Packages that share their name with a public function, and are that function as well.

`onnxslim.passes()` lists the passes, and `onnxslim.passes` holds them: Python binds the package to
the name as soon as it is imported, so the package itself must answer to a call.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


class _CallablePackage(ModuleType):
    """A package whose call is that of the function of its name in `onnxslim.surveys`."""

    def __call__(self, *arguments: object, **named: object) -> object:
        home = importlib.import_module("onnxslim.surveys")
        return getattr(home, self.__name__.rpartition(".")[2])(*arguments, **named)


def make_callable(package: str) -> None:
    """Let the package of this name, which is being imported, be called."""
    sys.modules[package].__class__ = _CallablePackage
