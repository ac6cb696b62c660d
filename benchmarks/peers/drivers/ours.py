"""Simplify with this project: `ours.py INPUT OUTPUT`, verification and latency off."""

import importlib
import pkgutil

from measure import Simplify, main


def load_tool() -> Simplify:
    """Import the tool, with all that it would load only once it runs."""
    import onnxslim.api
    import onnxslim.passes
    import onnxslim.runtime.evaluate

    for module in pkgutil.iter_modules(onnxslim.passes.__path__, "onnxslim.passes."):
        importlib.import_module(module.name)
    importlib.import_module("onnxruntime")

    def simplify(source: str, target: str) -> object:
        return onnxslim.compress(
            source, output=target, passes="simplify", verify=False, measure=False
        )

    return simplify


main(load_tool)
