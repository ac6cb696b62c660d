"""Train LeNet-300-100 on MNIST and export it (needs torch): dense layers alone, 266,610 parameters.

The other network of the compression literature (LeCun et al. 1998; Han et al. 2016). Half a minute
on two idle cores; torch comes with the extra `train`.

    python examples/train_lenet300.py --output lenet300.onnx
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import torch
from mnist import DataError, Recipe, export_onnx, load_mnist, log_error, log_file, train
from torch import nn

log = logging.getLogger("train_lenet300")

MEAN, STD = 0.1307, 0.3081  # of the training pixels, on the scale 0..1
# a net without convolutions gains little from moved images, and published ones were not given any
STILL = {"rotation_degrees": 0.0, "scale_ratio": 0.0, "shift_pixels": 0.0}
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


class LeNet300(nn.Module):
    """Three dense layers of 300, 100 and 10 units. Takes pixel values in 0..1."""

    def __init__(self) -> None:
        """Set up layers with torch's default initial weights."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images (n, 1, 28, 28) to logits (n, 10)."""
        x = ((image - MEAN) / STD).view(image.size(0), -1)  # (n, 1, 28, 28) -> (n, 784)
        logits: torch.Tensor = self.layers(x)
        return logits


@click.command()
@click.option("--data", type=FOLDER, help="Folder of the four idx files; fetched if not given.")
@click.option("--output", type=FILE, default="lenet300.onnx", show_default=True, help="The model.")
@click.option("--epochs", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(data: Path | None, output: Path, epochs: int, seed: int) -> None:
    """Train LeNet-300-100 on MNIST, export it to ONNX, and measure the exported file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        mnist = load_mnist(data)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    module = train(LeNet300, mnist.train, Recipe(epochs, **STILL), seed)
    export_onnx(module, output)
    log.info("parameters: %d", sum(p.numel() for p in module.parameters()))
    log_error(output, mnist.test)
    log_file(output)


if __name__ == "__main__":
    main()
