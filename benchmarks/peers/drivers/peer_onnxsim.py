"""Simplify with onnxsim: `peer_onnxsim.py INPUT OUTPUT`."""

from measure import Simplify, main


def load_tool() -> Simplify:
    """Import the tool and return what simplifies with it."""
    import onnxsim

    def simplify(source: str, target: str) -> object:
        # From path to path is its leanest way: 1.2 GB for VGG-19, 1.8 GB through a ModelProto.
        return onnxsim.simplify(source, output_path=target)

    return simplify


main(load_tool)
