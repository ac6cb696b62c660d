"""Convert with onnxconverter-common: `fp16_converter.py INPUT OUTPUT SAMPLES.npz`; asks no samples.

Inputs and outputs keep their types, as ours do.
"""

import sys

import onnx
from onnxconverter_common import float16


def main() -> None:
    """Write OUTPUT."""
    source, target, _ = sys.argv[1:]
    converted = float16.convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(converted, target)


main()
