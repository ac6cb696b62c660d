"""Weights with onnxruntime: `quantize_nbits_ort.py INPUT OUTPUT BITS BLOCK LEVEL [WORDS...]`.

MatMulNBitsQuantizer, to nearest. LEVEL is the accuracy level of the kernel. WORDS: `symmetric`, and
`gather` for tables of embeddings too. `hqq` (which needs torch), `k_quant` and `gptq=SAMPLES` round
otherwise, 4 bits with zero points; SAMPLES is an archive of arrays `NUMBER/INPUT`.
"""

import sys

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    GPTQWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)


class Samples(CalibrationDataReader):
    """The samples of an archive, in order."""

    def __init__(self, file):
        """Read them all."""
        found = {}
        with np.load(file) as archive:
            for key in archive.files:
                number, _, name = key.partition("/")
                found.setdefault(int(number), {})[name] = archive[key]
        self.rows = [found[number] for number in sorted(found)]
        self.rewind()

    def get_next(self):
        """Return the next sample; None behind the last."""
        return next(self.left, None)

    def rewind(self):
        """Start anew."""
        self.left = iter(self.rows)


def main() -> None:
    """Write OUTPUT."""
    source, target, bits, block, level, *words = sys.argv[1:]
    operators = ("MatMul", "Gather") if "gather" in words else ("MatMul",)
    samples = [word.partition("=")[2] for word in words if word.startswith("gptq=")]
    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node {index}"  # GPTQ looks nodes up by name
    if "hqq" in words:
        config = HQQWeightOnlyQuantConfig(block_size=int(block), bits=int(bits))
    elif "k_quant" in words:
        config = KQuantWeightOnlyQuantConfig()
    elif samples:
        config = GPTQWeightOnlyQuantConfig(Samples(samples[0]), block_size=int(block))
    else:
        config = DefaultWeightOnlyQuantConfig(
            block_size=int(block),
            is_symmetric="symmetric" in words,
            accuracy_level=int(level),
            op_types_to_quantize=operators,
            bits=int(bits),
        )
    quantizer = MatMulNBitsQuantizer(
        model,
        block_size=int(block),
        is_symmetric="symmetric" in words,
        accuracy_level=int(level),
        op_types_to_quantize=operators,
        algo_config=config,
    )
    quantizer.process()
    made = quantizer.model
    if hasattr(made, "save_model_to_file"):
        made.save_model_to_file(target)
    else:
        onnx.save(made, target)


main()
