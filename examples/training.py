"""The command that the training scripts share: load MNIST, train, export to ONNX, measure the file.

LeNet-5 has a command of its own, because it also writes the data of `onnxslim demo`. On a busy
machine set OMP_WAIT_POLICY=passive: the threads of torch wait for each other by spinning, which can
make a step many times slower.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import onnxruntime as ort
import torch
from mnist import (
    DataError,
    Samples,
    TrainingRecipe,
    export_onnx,
    load_mnist,
    log_error,
    log_file,
    train,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

log = logging.getLogger("training")

COMPARED_IMAGES = 1000
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


def training_command(
    build: Callable[[], nn.Module], recipe: TrainingRecipe, *, name: str, summary: str
) -> click.Command:
    """A command that trains the module of `build` by `recipe` and writes `<name>.onnx`."""

    @click.command(name, help=summary)
    @click.option("--data", type=FOLDER, help="Folder of the four idx files; fetched if not given.")
    @click.option("--output", type=FILE, default=f"{name}.onnx", show_default=True, help="Model.")
    @click.option("--epochs", type=click.IntRange(min=1), default=recipe.epochs, show_default=True)
    @click.option("--seed", type=int, default=0, show_default=True)
    def main(data: Path | None, output: Path, epochs: int, seed: int) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        try:
            mnist = load_mnist(data)
        except DataError as error:
            raise click.ClickException(str(error)) from error
        output.parent.mkdir(parents=True, exist_ok=True)
        module = train(build, mnist.train, replace(recipe, epochs=epochs), seed)
        export_onnx(module, output, batch="N")
        log.info("parameters: %d", sum(p.numel() for p in module.parameters()))
        _log_difference(module, output, mnist.test.first(COMPARED_IMAGES))
        log_error(output, mnist.test)
        log_file(output)

    return main


def _log_difference(module: nn.Module, path: Path, samples: Samples) -> None:
    """Log how far the logits of the file, run by onnxruntime, are from those of torch."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"image": samples.image})[0]
    with torch.no_grad():
        expected = module(torch.from_numpy(samples.image)).numpy()
    same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    log.info(
        "onnxruntime against torch: logits within %.1e, same digit on %d of %d",
        np.abs(found - expected).max(),
        same,
        len(samples.label),
    )
