"""Simplify the zoo with every tool, side by side, and print who does what at which price.

    python -m benchmarks.simplify [MODELS...] [--tools ours,OnnxSlim] [--repeats 3]

Tools run interleaved (A B C, B C A, ...), each in a process of its own; seconds are medians with
their span. Outputs stay in the cache folder. Numbers go to `benchmarks/results/simplify.json`;
those of a run on only some models or tools stay in the cache folder too. A tool that crashes, or
takes more than ten minutes, is a row like any other.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import onnx
from rich.console import Console
from rich.progress import Progress

from benchmarks import reporting
from benchmarks.models.zoo import ZooError, ZooModel, cache_folder, models, path
from benchmarks.peers.environments import TIMEOUT_SECONDS, PeerError, Run, Tool, run, tools
from benchmarks.simplify.drift import Drift
from benchmarks.simplify.report import Row, Span, print_tables, print_verdict

CONSOLE = Console()
RESULTS = reporting.RESULTS / "simplify.json"


def output_path(tool: Tool, model: ZooModel) -> Path:
    """Return where `tool` writes its version of `model`: a folder of its own, external data too."""
    return cache_folder() / "outputs" / tool.name / model.name / "model.onnx"


def size_bytes(file: Path) -> int:
    """Return the bytes of all files in the model's folder: the model and its external data."""
    return sum(part.stat().st_size for part in file.parent.iterdir())


def operators(file: Path) -> Counter[str]:
    """Count operators by type, bodies of If, Loop and Scan and of local functions included."""
    model = onnx.load(file, load_external_data=False)
    counts = Counter(node.op_type for node in _nodes(model.graph.node))
    for function in model.functions:
        counts.update(node.op_type for node in _nodes(function.node))
    return counts


def _nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body.node)


def measure(model: ZooModel, chosen: Sequence[Tool], repeats: int, progress: Progress) -> list[Row]:
    """Run every tool `repeats` times on `model`, interleaved, and judge what it wrote."""
    source = path(model)
    source.read_bytes()  # into the page cache, for the first tool as for the others
    task = progress.add_task(model.name, total=repeats * len(chosen))
    runs: dict[str, list[Run]] = {tool.name: [] for tool in chosen}
    digests: dict[str, set[str]] = {tool.name: set() for tool in chosen}
    for repeat in range(repeats):
        first = repeat % len(chosen)
        for tool in (*chosen[first:], *chosen[:first]):
            target = _fresh(output_path(tool, model))
            os.sync()  # nobody pays for what the tool before left unwritten
            runs[tool.name].append(run(tool, source, target))
            digests[tool.name].add(_digest(target))
            progress.advance(task)
    progress.remove_task(task)
    return [
        _judge(model, tool, runs[tool.name], is_repeatable=len(digests[tool.name]) == 1)
        for tool in chosen
    ]


def _fresh(target: Path) -> Path:
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir(parents=True)
    return target


def _digest(target: Path) -> str:
    if not target.exists():
        return ""
    with target.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _judge(model: ZooModel, tool: Tool, runs: Sequence[Run], *, is_repeatable: bool) -> Row:
    source, target = path(model), output_path(tool, model)
    error = next((item.error for item in runs if item.error), None)
    if error is None and not target.exists():
        error = "wrote nothing"
    before = operators(source)
    try:
        after = operators(target) if error is None else Counter[str]()
    except Exception as failure:  # protobuf has no public class for a broken file
        after, error = Counter(), f"unreadable: {failure}"
    return Row(
        model=model.name,
        tool=tool.name,
        error=_without_paths(error),
        operators_before=dict(before.most_common()),
        operators=dict(after.most_common()),
        bytes_before=source.stat().st_size,
        bytes=0 if error else size_bytes(target),
        seconds=_span([item.seconds for item in runs]),
        seconds_cpu=_span([item.seconds_cpu for item in runs]),
        seconds_process=_span([item.seconds_process for item in runs]),
        peak_rss_bytes=int(statistics.median(item.peak_rss_bytes for item in runs)),
        late_imports=max(item.late_imports for item in runs),
        is_repeatable=is_repeatable,
        drift=_drift(model, target) if error is None else Drift(0, 0, "no model"),
    )


def _without_paths(text: str | None) -> str | None:
    """Return what a tool said without this machine's folders: results are for everybody."""
    for folder in (cache_folder(), reporting.ROOT, Path(sys.prefix)):
        text = text and text.replace(str(folder), folder.name)
    return text


def _span(values: Sequence[float]) -> Span:
    return Span(statistics.median(values), min(values), max(values))


def _drift(model: ZooModel, target: Path) -> Drift:
    command = [sys.executable, "-m", "benchmarks.simplify.drift", model.name, str(target.resolve())]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
            cwd=reporting.ROOT,
        )
        drift = Drift(**json.loads(done.stdout))
        return replace(drift, wrong=_without_paths(drift.wrong))
    except subprocess.TimeoutExpired:
        return Drift(0, 0, f"no outputs in {TIMEOUT_SECONDS} s")
    except json.JSONDecodeError:
        return Drift(0, 0, f"onnxruntime died, exit code {done.returncode}")


def _save(rows: Sequence[Row], repeats: int, file: Path) -> None:
    content = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "repeats": repeats,
        "requirements": {tool.name: list(tool.requirements) for tool in tools()},
        "rows": [asdict(row) for row in rows],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare simplifiers on real models.")
    parser.add_argument("models", nargs="*", help="models of the zoo (default: all)")
    parser.add_argument("--tools", help="names with commas between (default: ours and all peers)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool on each model")
    return parser.parse_args()


def main() -> int:
    """Measure, print, save; exit code 2 for a name that is not known."""
    arguments = _arguments()
    try:
        chosen_models = models(arguments.models)
        chosen_tools = tools(arguments.tools.split(",") if arguments.tools else None)
    except (ZooError, PeerError) as error:
        CONSOLE.print(f"[red]{error}[/red]")
        return 2
    is_complete = not arguments.models and not arguments.tools
    file = RESULTS if is_complete else cache_folder() / "results" / RESULTS.name
    rows: list[Row] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for model in progress.track(chosen_models, description="models"):
            rows += measure(model, chosen_tools, arguments.repeats, progress)
            _save(rows, arguments.repeats, file)
    print_tables(CONSOLE, rows)
    print_verdict(CONSOLE, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
