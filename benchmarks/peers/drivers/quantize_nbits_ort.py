"""Weights with onnxruntime: `quantize_nbits_ort.py INPUT OUTPUT BITS BLOCK LEVEL [WORDS...]`.

MatMulNBitsQuantizer, to nearest; it has no other rounding without further packages. LEVEL is the
accuracy level of the kernel. WORDS: `symmetric`, and `gather` for tables of embeddings too.
"""

import sys

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)


def main() -> None:
    """Write OUTPUT."""
    source, target, bits, block, level, *words = sys.argv[1:]
    operators = ("MatMul", "Gather") if "gather" in words else ("MatMul",)
    config = DefaultWeightOnlyQuantConfig(
        block_size=int(block),
        is_symmetric="symmetric" in words,
        accuracy_level=int(level),
        op_types_to_quantize=operators,
        bits=int(bits),
    )
    quantizer = MatMulNBitsQuantizer(
        onnx.load(source), op_types_to_quantize=operators, algo_config=config
    )
    quantizer.process()
    quantizer.model.save_model_to_file(target)


main()
