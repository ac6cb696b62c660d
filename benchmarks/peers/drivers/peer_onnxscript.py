"""Simplify with onnxscript's optimizer, default rules: `peer_onnxscript.py INPUT OUTPUT`."""

from measure import Simplify, main


def load_tool() -> Simplify:
    """Import the tool and return what simplifies with it."""
    import onnx_ir
    from onnxscript import optimizer

    def simplify(source: str, target: str) -> object:
        model = onnx_ir.load(source)
        optimizer.optimize(model)
        return onnx_ir.save(model, target)

    return simplify


main(load_tool)
