"""Quantize with NNCF: `quantize_nncf.py INPUT OUTPUT SAMPLES.npz`; post-training, its defaults.

Opsets below 13 are raised to 17 first: it quantizes nothing per channel below.
"""

import sys

import nncf
import numpy as np
import onnx
from onnx import version_converter


def main() -> None:
    """Write OUTPUT."""
    source, target, samples = sys.argv[1:]
    with np.load(samples) as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(whole.values())))
    rows = [{name: array[row : row + 1] for name, array in whole.items()} for row in range(count)]
    model = onnx.load(source)
    opset = next(item.version for item in model.opset_import if not item.domain)
    if opset < 13:
        model = version_converter.convert_version(model, 17)
    onnx.save(nncf.quantize(model, nncf.Dataset(rows), subset_size=count), target)


main()
