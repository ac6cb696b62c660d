"""Quantize with onnxruntime: `quantize_ort.py INPUT OUTPUT SAMPLES.npz u8|s8 [METHOD]`.

quantize_static after its own pre-processing, per channel, QDQ, min-max ranges
unless METHOD is entropy. Opsets below 13 are
raised to 17 first: the models it writes for them do not load.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    """Samples of an .npz file, one by one."""

    def __init__(self, file: str) -> None:
        with np.load(file) as arrays:
            whole = {name: arrays[name] for name in arrays.files}
        count = len(next(iter(whole.values())))
        self._rows = iter(
            [{name: array[row : row + 1] for name, array in whole.items()} for row in range(count)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample; None at the end."""
        return next(self._rows, None)


def main() -> None:
    """Write OUTPUT."""
    source, target, samples, kind, *rest = sys.argv[1:]
    method = CalibrationMethod.Entropy if rest == ["entropy"] else CalibrationMethod.MinMax
    model = onnx.load(source)
    opset = next(item.version for item in model.opset_import if not item.domain)
    if opset < 13:
        model = version_converter.convert_version(model, 17)
    with tempfile.TemporaryDirectory() as folder:
        raised, prepared = Path(folder) / "raised.onnx", Path(folder) / "prepared.onnx"
        onnx.save(model, raised)
        quant_pre_process(str(raised), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            target,
            Reader(samples),
            per_channel=True,
            activation_type=QuantType.QUInt8 if kind == "u8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
        )


main()
