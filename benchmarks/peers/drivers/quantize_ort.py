"""Quantize with onnxruntime: `quantize_ort.py INPUT OUTPUT SAMPLES.npz u8|s8 [WORDS...]`.

quantize_static after its own pre-processing, per channel, QDQ, min-max ranges. WORDS: `entropy` for
those ranges; `reduced` gives weights 7 bits, as its documentation advises for x86 without VNNI;
`products` leaves all but MatMul and Gemm in float. Opsets below 13 are raised first: the models it
writes for them do not load.
"""

import sys
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from samples import Sample, load_raised, read_samples


class Reader(CalibrationDataReader):
    """Samples of an .npz file, one by one."""

    def __init__(self, file: str) -> None:
        self._rows = iter(read_samples(file))

    def get_next(self) -> Sample | None:
        """The next sample; None at the end."""
        return next(self._rows, None)


def main() -> None:
    """Write OUTPUT."""
    source, target, samples, kind, *rest = sys.argv[1:]
    method = CalibrationMethod.Entropy if "entropy" in rest else CalibrationMethod.MinMax
    with tempfile.TemporaryDirectory() as folder:
        raised, prepared = Path(folder) / "raised.onnx", Path(folder) / "prepared.onnx"
        onnx.save(load_raised(source), raised)
        quant_pre_process(str(raised), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            target,
            Reader(samples),
            op_types_to_quantize=["MatMul", "Gemm"] if "products" in rest else None,
            per_channel=True,
            reduce_range="reduced" in rest,
            activation_type=QuantType.QUInt8 if kind == "u8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
        )


main()
