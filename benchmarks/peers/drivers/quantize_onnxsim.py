"""Quantize with onnxsim: `quantize_onnxsim.py INPUT OUTPUT SAMPLES.npz`; simplifies first.

Opsets below 13 are raised first: it refuses them.
"""

import sys

import onnx
import onnxsim
from samples import load_raised, read_samples


def main() -> None:
    """Write OUTPUT."""
    source, target, samples = sys.argv[1:]
    rows = read_samples(samples)
    simplified, _ = onnxsim.simplify(load_raised(source))
    onnx.save(onnxsim.quantize_static(simplified, calibration_data=rows, full_graph=True), target)


main()
