"""Write MNIST as sample files: unlabelled images for --calib, labelled images for --eval.

python examples/mnist_samples.py --folder samples --calibration 60000
onnxslim lenet5.onnx out.onnx --passes deep-compression --calib samples/mnist_calib.npz
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import numpy as np
from mnist import DataError, load_mnist, log_file

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--data", type=FOLDER, help="Folder of the four idx files; fetched if not given.")
@click.option("--folder", type=FOLDER, default=".", show_default=True, help="Output folder.")
@click.option("--calibration", type=click.IntRange(1, 60000), default=60000, show_default=True)
@click.option("--evaluation", type=click.IntRange(1, 10000), default=10000, show_default=True)
def main(data: Path | None, folder: Path, calibration: int, evaluation: int) -> None:
    """Write `mnist_calib.npz` (training images) and `mnist_eval.npz` (test images and labels)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        mnist = load_mnist(data)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "mnist_calib.npz", image=mnist.train.first(calibration).image)
    chosen = mnist.test.first(evaluation)
    np.savez_compressed(folder / "mnist_eval.npz", image=chosen.image, label=chosen.label)
    for name in ("mnist_calib.npz", "mnist_eval.npz"):
        log_file(folder / name)


if __name__ == "__main__":
    main()
