"""Functions of the user's own, named on the command line as `module:function`.

Owns: where modules are looked for. The current folder comes first, as for `python -m`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Final

from onnxslim.errors import OnnxslimError, UsageError

_SPEC: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_function_name(text: str) -> bool:
    """Whether `text` is spelled like `module:function`."""
    return _SPEC.fullmatch(text) is not None


def load_function(spec: str) -> Callable[..., object]:
    """Import the function that `module:function` names.

    Raises:
        UsageError: there is no such module or function, or importing it fails.
    """
    module_name, _, attribute = spec.partition(":")
    found: object = _import(module_name, spec)
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise UsageError(f"Module `{module_name}` has no `{attribute}` (from `{spec}`).")
    if not callable(found):
        raise UsageError(f"`{spec}` is a {type(found).__name__}; a function is needed.")
    return found


def call(function: Callable[..., object], spec: str, *arguments: object) -> object:
    """Call a function of the user; an exception becomes an error that names the function.

    Raises:
        UsageError: the function raised.
    """
    try:
        return function(*arguments)
    except OnnxslimError:
        raise  # from a model that the function ran
    except Exception as error:
        raise failed(spec, error) from error


def failed(spec: str, error: Exception) -> UsageError:
    """The error that says that the user's function raised `error`."""
    return UsageError(f"`{spec}` failed with {type(error).__name__}: {error}")


def _import(name: str, spec: str) -> object:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise UsageError(
                f"There is no module `{name}` (from `{spec}`), neither installed nor in the "
                f"current folder `{folder}`."
            ) from None
        raise failed(spec, error) from error
    except Exception as error:
        raise failed(spec, error) from error
    finally:
        sys.path.remove(folder)
