"""Fuse with onnxruntime's transformers optimizer: `optimize_ort.py INPUT OUTPUT TYPE HEADS WIDTH`.

TYPE is what it calls the architecture; HEADS and WIDTH are 0 where it is to find them itself. What
it writes has operators of onnxruntime's own domain.
"""

import sys

from onnxruntime.transformers.optimizer import optimize_model


def main() -> None:
    """Write OUTPUT."""
    source, target, kind, heads, width = sys.argv[1:]
    optimized = optimize_model(source, kind, num_heads=int(heads), hidden_size=int(width))
    optimized.save_model_to_file(target)


main()
