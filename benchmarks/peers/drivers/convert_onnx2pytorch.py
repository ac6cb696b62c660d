"""Run a model by onnx2pytorch: `convert_onnx2pytorch.py MODEL OUTPUTS.npz INPUTS.npz`."""

import sys

import numpy as np
import onnx
import torch

# beside a torch for CPUs torchvision has no operators of its own, and misses these at import
LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from onnx2pytorch import ConvertModel  # noqa: E402


def main() -> None:
    """Write OUTPUTS.npz."""
    source, target, given = sys.argv[1:]
    proto, arrays = onnx.load(source), np.load(given)
    # it cannot export to float16, and warns of what it guesses
    module = ConvertModel(proto, experimental=True).eval()
    inputs = [
        torch.from_numpy(arrays[info.name]) for info in proto.graph.input if info.name in arrays
    ]
    with torch.no_grad():
        outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    names = [info.name for info in proto.graph.output]
    np.savez(target, **{name: value.numpy() for name, value in zip(names, outputs, strict=False)})


main()
