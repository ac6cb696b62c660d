"""What retraining brings: accuracy after distillation without labels, beside what it costs.

    python -m benchmarks.retraining measure EXPERIMENT [--rows PATTERN] [--seeds N]
    python -m benchmarks.retraining tables

Experiments are `channels` (a ResNet-14 with fewer channels), `files` (LeNets pruned, clustered and
packed), `levels` (both with few bits a weight), `density` (LeNet-300-100 with 3.85 % of its
weights, by each way to get there), `exits` (the ResNet-14 with early exits), `quantized` (NudeNet
and PP-OCR in int8), `encoder` (MiniLM with fewer heads and units) and `pictures`
(EfficientNet-lite0). Nets are trained here when they are not there yet
(`benchmarks.models.small_nets`). Each row is one setting on one seed, and is saved to
`benchmarks/results/retraining_EXPERIMENT.json` as it comes; rows that are there are not measured
again but with `--again`. Errors are those on test pictures that nothing else saw. Processor seconds
are of one thread. `tables` writes the tables and pictures of `docs/retraining.md` anew. Needs the
extra `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import click

from benchmarks.reporting import refresh
from benchmarks.retraining import (
    channels,
    density,
    encoder,
    exits,
    files,
    levels,
    pictures,
    quantized,
)
from benchmarks.retraining.runs import Plan, measured
from benchmarks.retraining.tables import PAGE, draw, table_of

EXPERIMENTS: Final[dict[str, Callable[[int], Iterator[Plan]]]] = {
    "channels": channels.plans,
    "files": files.plans,
    "levels": levels.plans,
    "density": density.plans,
    "exits": exits.plans,
    "quantized": quantized.plans,
    "encoder": encoder.plans,
    "pictures": pictures.plans,
}


@click.group()
def main() -> None:
    """Measure retraining."""


@main.command("measure")
@click.argument("experiment", type=click.Choice(list(EXPERIMENTS)))
@click.option("--rows", default="*", show_default=True, help="Names; `*` and `?` match.")
@click.option("--seeds", default=1, show_default=True, help="How many, from 0.")
@click.option("--seed", type=int, help="This one alone.")
@click.option("--again", is_flag=True, help="Measure rows that are there, too.")
def measure(experiment: str, rows: str, seeds: int, seed: int | None, *, again: bool) -> None:
    """One row for each setting and seed."""
    chosen = range(seeds) if seed is None else (seed,)
    plans = (plan for number in chosen for plan in EXPERIMENTS[experiment](number))
    measured(experiment, plans, rows, again=again)


@main.command("tables")
def tables_command() -> None:
    """Write the tables and pictures of the page anew, from the results."""
    draw()
    refresh(PAGE, table_of)


if __name__ == "__main__":
    main()
