"""Quantize with onnxruntime, activations as the model runs: `quantize_dynamic_ort.py INPUT OUTPUT`.

quantize_dynamic after its own pre-processing, weights per channel.
"""

import sys
import tempfile
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process


def main() -> None:
    """Write OUTPUT."""
    source, target = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(prepared, target, per_channel=True, weight_type=QuantType.QInt8)


main()
