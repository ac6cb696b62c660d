"""Quantize with onnxsim: `quantize_onnxsim.py INPUT OUTPUT SAMPLES.npz`; simplifies first."""

import sys

import numpy as np
import onnx
import onnxsim


def main() -> None:
    """Write OUTPUT."""
    source, target, samples = sys.argv[1:]
    with np.load(samples) as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(whole.values())))
    rows = [{name: array[row : row + 1] for name, array in whole.items()} for row in range(count)]
    simplified, _ = onnxsim.simplify(source)
    onnx.save(onnxsim.quantize_static(simplified, calibration_data=rows, full_graph=True), target)


main()
