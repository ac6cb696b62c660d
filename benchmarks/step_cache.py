"""What the cache of steps saves: one pipeline on many models, a first and a second time.

    python -m benchmarks.step_cache [NAMES...] [--passes PIPELINE]

Each run is a command of its own, as in CI, with verification and timing. Models are those of the
zoo, with LeNet-5. Rows: processor seconds and seconds on the wall of both runs, bytes that the
cache took, whether the files are equal. Results go to `benchmarks/results/step_cache.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.models.zoo import models, path
from benchmarks.reporting import Found, saved
from onnxslim.io.content_store import ContentStore
from onnxslim.run.record import processor_name

_MAIN: Final = "import sys; from onnxslim.cli import main; sys.exit(main())"
_LENET: Final = "lenet5"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--passes", default="simplify,quantize-weights", show_default=True)
def main(names: Sequence[str], passes: str) -> None:
    """Run the pipeline twice on each model; on all of them by default."""
    chosen = names or (_LENET, *(model.name for model in models()))
    with tempfile.TemporaryDirectory() as folder:
        rows = saved("step_cache", _rows(chosen, passes, Path(folder)), replacing=("model",))
    own = [row for row in rows if row["model"] in chosen]
    for clock in ("seconds", "cpu_seconds"):
        first, second = (sum(row[f"{turn}_{clock}"] for row in own) for turn in ("first", "second"))
        click.echo(f"{len(own)} models, {clock}: {first:.0f}, then {second:.0f}")


def _rows(names: Sequence[str], passes: str, folder: Path) -> Iterator[Found]:
    for name in names:
        source = _file(name)
        store = ContentStore(folder / "cache")
        before = sum(file.nbytes for file in store.kept())
        first, second = (_run(source, passes, folder, turn) for turn in ("first", "second"))
        yield {
            "model": name,
            "passes": passes,
            "processor": processor_name(),
            "file_bytes": source.stat().st_size,
            "steps": len(second["from_cache"]),
            "first_cpu_seconds": first["cpu_seconds"],
            "second_cpu_seconds": second["cpu_seconds"],
            "first_seconds": first["seconds"],
            "second_seconds": second["seconds"],
            "cache_bytes": sum(file.nbytes for file in store.kept()) - before,
            "all_from_cache": all(second["from_cache"]),
            "same_bytes": first["sha256"] == second["sha256"],
        }


def _file(name: str) -> Path:
    if name == _LENET:
        return Path(str(resources.files("onnxslim") / "assets" / "lenet5.onnx"))
    return path(*models([name]))


def _run(source: Path, passes: str, folder: Path, turn: str) -> Mapping[str, Any]:
    """One command to its end."""
    output, report = folder / f"{turn}.onnx", folder / f"{turn}.json"
    settings = ["--passes", passes, "--cache", str(folder / "cache"), "--no-floor"]
    files = [str(source), str(output), "--report", str(report), "--overwrite", "--quiet"]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-P", "-c", _MAIN, *files, *settings])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{source.name}: exit code {process.returncode}")
    seconds = round(time.perf_counter() - started, 1)
    cpu_seconds = round(usage.ru_utime + usage.ru_stime, 1)
    found = json.loads(report.read_text("utf-8"))
    from_cache = [step["from_cache"] for step in found["passes"]]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "from_cache": from_cache,
        "sha256": found["output"]["sha256"],
    }


if __name__ == "__main__":
    main()
