"""Compress weights with NNCF: `compress_weights_nncf.py INPUT OUTPUT SAMPLES.npz`.

4 bits in blocks of 32, all layers; opsets are raised to 21 first, which has them.
"""

import sys

import nncf
import onnx
from onnx import version_converter


def main() -> None:
    """Write OUTPUT."""
    source, target, _ = sys.argv[1:]
    model = version_converter.convert_version(onnx.load(source), 21)
    mode = nncf.CompressWeightsMode.INT4_SYM
    onnx.save(nncf.compress_weights(model, mode=mode, group_size=32, all_layers=True), target)


main()
