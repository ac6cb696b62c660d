"""Remove channels with onnxsim: `prune_onnxsim.py INPUT OUTPUT SHARE`; simplifies first.

It takes channels by the l2 norm of their weights, the same share of every layer that it can follow.
"""

import sys

import onnx
import onnxsim


def main() -> None:
    """Write OUTPUT."""
    source, target, share = sys.argv[1:]
    simplified, _ = onnxsim.simplify(source)
    onnx.save(onnxsim.apply_structured_pruning(simplified, sparsity=float(share)), target)


main()
