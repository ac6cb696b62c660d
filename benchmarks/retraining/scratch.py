"""A pruned ResNet-14 trained from scratch: the widths are what pruning left, the weights random.

Liu et al. 2019 (arXiv:1810.05270) ask whether a small net needs the weights of the large one. The
net has its BatchNormalization back, and is trained with labels, by the recipe of the original.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import nn

from benchmarks.models.small_nets import export_onnx, train
from benchmarks.models.zoo import cache_folder
from benchmarks.retraining.runs import Subject
from onnxslim.io.model import Model


@dataclass(frozen=True)
class Scratch:
    """A net that was trained from scratch.

    Attributes:
        model: as ONNX.
        epochs: over all 60,000 training pictures.
        cpu: processor seconds of training, one thread.
    """

    model: Model
    epochs: int
    cpu: float


def from_scratch(subject: Subject, pruned: Path, *, work: float = 1.0) -> Scratch:
    """Train a net as wide as `pruned` is.

    Args:
        subject: the original.
        pruned: the file that `prune-channels` left.
        work: multiply-accumulates of `pruned`, as a share of the original's: epochs are as many
            more. 1.0: as many epochs as the original had.
    """
    recipe = replace(subject.net.recipe, epochs=round(subject.net.recipe.epochs / work))
    started = time.process_time()
    module = train(
        lambda: narrowed(subject.net.build(), pruned),
        subject.data.train,
        recipe,
        subject.seed,
        threads=1,
    )
    cpu = time.process_time() - started
    file = cache_folder() / "retraining" / "scratch.onnx"
    export_onnx(module, file, batch="N")
    return Scratch(Model.load(file), recipe.epochs, cpu)


def narrowed(module: nn.Module, pruned: Path) -> nn.Module:
    """The module with new layers, of the widths that those of `pruned` have, in their order."""
    shapes = _widths(pruned)
    names = [n for n, layer in module.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(names) == len(shapes), (names, shapes)
    norms = {n: layer for n, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    for name, (rows, columns) in zip(names, shapes, strict=True):
        old = module.get_submodule(name)
        if isinstance(old, nn.Linear):
            _put(module, name, nn.Linear(columns, rows))
            continue
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(columns, rows, old.kernel_size, old.stride, old.padding, bias=False)
        _put(module, name, new)
        head, _, number = name.rpartition(".")
        behind = f"{head}.{int(number) + 1}"
        assert behind in norms
        _put(module, behind, nn.BatchNorm2d(rows))
    return module


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    head, _, last = name.rpartition(".")
    setattr(module.get_submodule(head), last, layer)


def _widths(pruned: Path) -> list[tuple[int, int]]:
    """Outputs and inputs of each layer, in the order of nodes."""
    graph = onnx.load(pruned).graph
    dims = {item.name: tuple(item.dims) for item in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    return [dims[node.input[1]][:2] for node in layers]
