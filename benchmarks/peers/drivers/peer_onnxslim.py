"""Simplify with OnnxSlim (the peer): `peer_onnxslim.py INPUT OUTPUT`."""

import importlib

from measure import Simplify, main


def load_tool() -> Simplify:
    """Import the tool and return what simplifies with it."""
    import onnxslim

    for late in ("onnxruntime", "colorama", "sympy.assumptions.wrapper", "sympy.tensor.tensor"):
        importlib.import_module(late)  # what it imports only once it runs

    simplify: Simplify = onnxslim.slim
    return simplify


main(load_tool)
