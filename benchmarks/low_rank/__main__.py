"""Low rank: what each method loses at each rank, and what it brings in measured time.

    python -m benchmarks.low_rank spectra TRAINED.onnx ...
    python -m benchmarks.low_rank curves TRAINED.onnx ... --calib C ...
    python -m benchmarks.low_rank trained vgg.onnx --calib C --eval E
    python -m benchmarks.low_rank decaying
    python -m benchmarks.low_rank nothing
    python -m benchmarks.low_rank large
    python -m benchmarks.low_rank tables

C and E are files that the scripts in `examples/` write; a C for each trained net, in their order.
`curves` adds two networks of the zoo on rendered pictures. Each command but the last writes
`benchmarks/results/low_rank_NAME.json` (`decaying MODELS...` the rows of those models in it);
`curves` also `low_rank_curves.csv` in `docs/data` and `low_rank_curves.svg` in `docs/images`;
`tables` writes those of `docs/low_rank.md` anew. `trained`, `decaying` and `nothing` time models:
they want a quiet machine. Networks with decaying spectra: see `benchmarks.low_rank.spectra`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks.low_rank.runs import curves, model_row, reasons, stacked, timed_command
from benchmarks.low_rank.spectra import STEEP, TRAINED, spectra, with_decay
from benchmarks.low_rank.tables import PAGE, draw_curves, table_of, write_csv
from benchmarks.models.zoo import cache_folder, models, path, sample_inputs
from benchmarks.reporting import CONSOLE, DOCS, refresh, save, saved

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
METHODS: Final = ("auto", "channel", "spatial", "tucker2", "cp", "depthwise")
ZOO_CURVES: Final = ("nudenet_320n", "ppocr_v4_rec")
UNCHANGED: Final = ("shufflenet", "ppocr_v2_cls", "ppocr_v4_det")
IMAGES: Final = 400
DECAYING_KEY: Final = ("model", "spec", "images")
HELD: Final = 8
FEW: Final = 32  # images for networks whose layers have thousands of inputs


@click.group()
def main() -> None:
    """Measure factorize-conv and factorize-dense."""


def _some(file: Path, count: int) -> dict[str, np.ndarray]:
    """The first samples of a file, without labels."""
    with np.load(file) as arrays:
        return {name: arrays[name][:count] for name in arrays.files if not name.startswith("label")}


@main.command("spectra")
@click.argument("files", nargs=-1, type=FILE, required=True)
def spectra_command(files: Sequence[Path]) -> None:
    """How fast the singular values of trained layers decay."""
    known = [*files, *(path(model) for model in models(["ppocr_v4_det", *ZOO_CURVES]))]
    rows = []
    for file in known:
        found = list(spectra(file))
        for kind in ("conv", "dense"):
            own = [row for row in found if row[1] == kind]
            if own:
                rows.append(
                    {
                        "model": file.stem,
                        "kind": kind,
                        "layers": len(own),
                        "exponent": [round(float(q), 2) for q in _quartiles([r[2] for r in own])],
                        "ranks_of_99": round(float(np.median([row[3] for row in own])), 2),
                    }
                )
    saved("low_rank_spectra", rows)


def _quartiles(values: Sequence[float]) -> np.ndarray:
    return np.quantile(values, (0.25, 0.5, 0.75))


@main.command("curves")
@click.argument("files", nargs=-1, type=FILE, required=True)
@click.option("--calib", "calibration", type=FILE, multiple=True, required=True)
def curves_command(files: Sequence[Path], calibration: Sequence[Path]) -> None:
    """Error against the share of weights left, of the layers with most work, by method and rank."""
    sources = [(file, _some(calib, IMAGES)) for file, calib in zip(files, calibration, strict=True)]
    sources += [(path(m), stacked(sample_inputs(m, FEW, 1))) for m in models(ZOO_CURVES)]
    rows: list[Mapping[str, Any]] = []
    for file, samples in sources:
        rows.extend(curves(file, samples))
        CONSOLE.print(file.stem, len(rows))
        save("low_rank_curves", {"rows": rows})
    write_csv(rows, DOCS / "data" / "low_rank_curves.csv")
    draw_curves(rows, DOCS / "images" / "low_rank_curves.svg")


@main.command("trained")
@click.argument("file", type=FILE)
@click.option("--calib", "calibration", type=FILE, required=True)
@click.option("--eval", "evaluation", type=FILE, required=True)
@click.option("--latency", type=float, multiple=True, default=(0.4, 0.3), help="Of the layers.")
def trained(file: Path, calibration: Path, evaluation: Path, latency: Sequence[float]) -> None:
    """Accuracy and measured time of a trained net, no labels, no retraining, by method."""
    samples = _some(calibration, IMAGES)
    specs = [
        f"simplify,factorize-conv:method={method}:latency={share}"
        for share in latency
        for method in METHODS
    ]
    saved(
        "low_rank_trained",
        (model_row(file, spec, samples, evaluation=evaluation, goal="latency") for spec in specs),
    )


@main.command("decaying")
@click.argument("names", nargs=-1)
def decaying(names: Sequence[str]) -> None:
    """VGG-19 and AlexNet with decaying spectra: size, time, error on images held back."""
    specs = (
        ("factorize-dense:goal=bytes", 0, STEEP),
        ("factorize-dense:goal=bytes", 0, TRAINED),
        ("factorize-dense:goal=bytes", FEW, TRAINED),
        ("simplify,factorize-conv:latency=0.65,factorize-dense", FEW, TRAINED),
        ("simplify,factorize-conv:latency=0.5,factorize-dense", FEW, TRAINED),
        ("simplify,factorize-conv:latency=0.615", 2 * FEW, TRAINED),
    )

    def rows() -> Iterable[Mapping[str, Any]]:
        for model in models(names or ["alexnet", "vgg19"]):
            samples = sample_inputs(model, 2 * FEW + HELD, 1)
            held = stacked(samples[FEW : FEW + HELD])
            del samples[FEW : FEW + HELD]
            for spec, images, exponents in specs:
                word = "steep" if exponents is STEEP else "trained"
                file = cache_folder() / "low_rank" / f"{model.name}_{word}.onnx"
                if not file.exists():
                    with_decay(path(model), file, exponents)
                known = stacked(samples[:images]) if images else None
                yield {**model_row(file, spec, known, held=held), "exponents": exponents}

    saved("low_rank_decaying", rows(), replacing=DECAYING_KEY if names else ())


@main.command("nothing")
@click.argument("names", nargs=-1)
def nothing(names: Sequence[str]) -> None:
    """Networks of depthwise and narrow Convs: nothing pays, and the pass says so of each layer."""
    saved(
        "low_rank_nothing",
        (
            reasons(path(model), "factorize-conv", stacked(sample_inputs(model, 8, 1)))
            for model in models(names or UNCHANGED)
        ),
    )


@main.command("large")
@click.option("--images", type=int, default=64, help="Calibration images.")
def large(images: int) -> None:
    """ResNet-50: seconds and memory, without data and with calibration images."""
    (model,) = models(["resnet50"])
    folder = cache_folder() / "low_rank"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"images{images}.npz"
    arrays: dict[str, Any] = dict(stacked(sample_inputs(model, images, 1)))
    np.savez(file, **arrays)
    target = folder / "large.onnx"
    saved(
        "low_rank_large",
        (
            {
                "images": count,
                "file_bytes": path(model).stat().st_size,
                **timed_command(path(model), target, "factorize-conv", "--no-verify", *extra),
            }
            for count, extra in ((0, ()), (images, ("--calib", str(file))))
        ),
    )


@main.command("tables")
def tables_command() -> None:
    """Write the tables of the page anew, from the results."""
    refresh(PAGE, table_of)


if __name__ == "__main__":
    main()
