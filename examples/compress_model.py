"""Compress a model from Python and read what was measured.

python examples/compress_model.py
"""

from __future__ import annotations

import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import click

import onnxslim


@click.command()
def main() -> None:
    """Simplify the bundled LeNet-5; stop when an output moves by more than rounding."""
    with as_file(files("onnxslim") / "assets") as assets, tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lenet5.slim.onnx"
        _, report = onnxslim.compress(
            assets / "lenet5.onnx",
            output,
            passes="simplify",
            calibration=assets / "mnist_calib.npz",
            evaluation=assets / "mnist_eval.npz",
        )
        for step in report.steps:
            click.echo(f"{step.spec}: {len(step.changes)} changes, kept: {step.committed}")
        before, after = report.before, report.after
        click.echo(f"nodes {before.stats.nodes} -> {after.stats.nodes}")
        click.echo(f"bytes {before.stats.file_bytes} -> {output.stat().st_size}")
        click.echo(f"accuracy {before.accuracy} -> {after.accuracy}, on {report.verified_on}")


if __name__ == "__main__":
    main()
