"""Train LeNet-5 on MNIST and export it (needs torch): the model of `onnxslim demo`.

LeNet-5 in the form that the compression literature uses (Caffe's: 20 and 50 filters, 500 hidden
units, 431,080 parameters). About four minutes on two idle cores; torch comes with the extra
`train`. The exported graph keeps what a real one has: the normalisation inside the model, a flatten
spelled with shapes, unfolded constants.

    python examples/train_lenet.py --output lenet5.onnx
    python examples/train_lenet.py --assets onnxslim/assets    # writes what `onnxslim demo` uses
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import numpy as np
import torch
from mnist import (
    MEAN,
    STD,
    DataError,
    Mnist,
    TrainingRecipe,
    export_onnx,
    load_mnist,
    log_error,
    log_file,
    train,
)
from torch import nn

log = logging.getLogger("train_lenet")

CALIBRATION_SAMPLES = 500
EVALUATION_SAMPLES = 1000
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


class LeNet5(nn.Module):
    """Two convolutions, each with a pool; two dense layers. Takes pixel values in 0..1."""

    def __init__(self) -> None:
        """Set up layers with torch's default initial weights."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(
            nn.Linear(800, 500), nn.ReLU(), nn.Dropout(0.5), nn.Linear(500, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images (n, 1, 28, 28) to logits (n, 10)."""
        x = self.features((image - MEAN) / STD)
        x = x.view(x.size(0), -1)  # (n, 50, 4, 4) -> (n, 800)
        logits: torch.Tensor = self.head(x)
        return logits


@click.command()
@click.option("--data", type=FOLDER, help="Folder of the four idx files; fetched if not given.")
@click.option("--output", type=FILE, default="lenet5.onnx", show_default=True, help="The model.")
@click.option("--assets", type=FOLDER, help="Write the model and the demo's samples here instead.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(data: Path | None, output: Path, assets: Path | None, epochs: int, seed: int) -> None:
    """Train LeNet-5 on MNIST, export it to ONNX, and measure the exported file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        mnist = load_mnist(data)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    model_file = assets / "lenet5.onnx" if assets else output
    model_file.parent.mkdir(parents=True, exist_ok=True)

    module = train(LeNet5, mnist.train, TrainingRecipe(epochs), seed)
    export_onnx(module, model_file)

    log.info("parameters: %d", sum(p.numel() for p in module.parameters()))
    log_error(model_file, mnist.test)
    log_file(model_file)
    if assets:
        _write_samples(mnist, assets)
        log_error(model_file, mnist.test.first(EVALUATION_SAMPLES))


def _write_samples(mnist: Mnist, folder: Path) -> None:
    """Write unlabelled training images and labelled test images, named as the model's input."""
    calibration = mnist.train.first(CALIBRATION_SAMPLES)
    evaluation = mnist.test.first(EVALUATION_SAMPLES)
    np.savez_compressed(folder / "mnist_calib.npz", image=calibration.image)
    image, label = evaluation.image, evaluation.label
    np.savez_compressed(folder / "mnist_eval.npz", image=image, label=label)
    log_file(folder / "mnist_calib.npz")
    log_file(folder / "mnist_eval.npz")


if __name__ == "__main__":
    main()
