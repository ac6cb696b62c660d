"""Other blocks for the convolutions of a classifier: weights, work, accuracy, latency of each kind.

    python -m benchmarks.substitution measure MODEL.onnx [KINDS...] --calib FILE --eval FILE
    python -m benchmarks.substitution tables

Each kind takes the place of every convolution that it has fewer weights than, whatever that does to
the outputs and to the time; floors are off. `initialised` is the closed form with its descent;
`alone` trains each block by itself for an epoch, `together` all of them for one more. Latency is
timed in turn with the model that came. `measure` adds to `benchmarks/results/substitution.json`;
with `--train` it goes through all stages.
"""

from __future__ import annotations

from typing import Any, Final

import click

import onnxslim
from benchmarks.reporting import DOCS, Found, Row, markdown, read, refresh, saved, times
from onnxslim.substitution.kinds.table import KINDS

NAME: Final = "substitution"
STAGES: Final = {"initialised": "", "alone": ":blockwise=1", "together": ":blockwise=1:finetune=1"}


def measured(model: str, kind: str, stage: str, data: dict[str, Any]) -> Found:
    """The row of a kind after a stage; `goal=bytes` replaces what is not faster, too."""
    passes = f"simplify,substitute-blocks:block={kind}:energy=0.001:goal=bytes{STAGES[stage]}"
    _, report = onnxslim.compress(model, passes=passes, floors=None, force=True, threads=1, **data)
    latency, before, after = report.latency, report.before, report.after
    return {
        "model": model.rpartition("/")[2],
        "kind": kind,
        "stage": stage,
        "parameters": [before.stats.parameters, after.stats.parameters],
        "macs": [before.stats.macs, after.stats.macs],
        "accuracy": [before.accuracy, after.accuracy],
        "times": None if latency is None else [latency.ratio, latency.low, latency.high],
    }


@click.group()
def main() -> None:
    """Measure, and write tables."""


@main.command()
@click.argument("model")
@click.argument("kinds", nargs=-1, type=click.Choice(list(KINDS)))
@click.option("--calib", required=True)
@click.option("--eval", "evaluation", required=True)
@click.option("--train")
def measure(
    model: str, kinds: tuple[str, ...], calib: str, evaluation: str, train: str | None
) -> None:
    """Measure every kind, with training where there is data for it."""
    data: dict[str, Any] = {"calibration": calib, "evaluation": evaluation}
    if train is not None:
        data["train"] = train
    work = [(k, s) for s in (STAGES if train else ("initialised",)) for k in kinds or KINDS]
    rows = (measured(model, kind, stage, data) for kind, stage in work)
    saved(NAME, rows, replacing=("model", "kind", "stage"))


@main.command()
def tables() -> None:
    """Write the table of `docs/substitution.md` anew."""
    found = read(NAME)
    rows = [] if found is None else found["rows"]
    refresh(DOCS / "substitution.md", lambda name: markdown(map(shown, rows)))


def shown(row: Found) -> Row:
    """A row as the page has it."""
    parameters, macs, accuracy = (row[name] for name in ("parameters", "macs", "accuracy"))
    return {
        "block": f"`{row['kind']}`",
        "stage": row["stage"],
        "parameters": f"{parameters[0] / 1e3:,.0f} k to {parameters[1] / 1e3:,.0f} k",
        "multiply-accumulates": f"{macs[0] / 1e6:.2f} M to {macs[1] / 1e6:.2f} M",
        "accuracy": f"{100 * accuracy[0]:.2f} to {100 * accuracy[1]:.2f} %",
        "times as fast": times(row["times"], "not timed"),
    }


if __name__ == "__main__":
    main()
