"""Simplify with onnxoptimizer, its default passes to a fixpoint: `... INPUT OUTPUT`."""

from measure import Simplify, main


def load_tool() -> Simplify:
    """Import the tool and return what simplifies with it."""
    import onnx
    import onnxoptimizer

    def simplify(source: str, target: str) -> object:
        optimized = onnxoptimizer.optimize(onnx.load(source), fixed_point=True)
        return onnx.save(optimized, target)

    return simplify


main(load_tool)
