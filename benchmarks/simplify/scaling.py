"""Does time grow linearly with the graph, and memory with the file?

    python -m benchmarks.simplify.scaling [--tool ours] [--repeats 3] [--large]

Times chains of 1,000 and of 10,000 nodes; linear is a ratio of 10, and 12 is what we allow. With
`--large` it simplifies a model of 2.5 GB with external data instead, and 12 GB is what we allow.
"""

import argparse
import statistics
import sys
from pathlib import Path

import onnx
from rich.console import Console
from rich.table import Table

from benchmarks.models.zoo import cache_folder
from benchmarks.peers.environments import PeerError, Run, Tool, run, tools
from benchmarks.simplify import chains

CONSOLE = Console()
LENGTHS = (1_000, 10_000)
RATIO_LIMIT = 12.0
LARGE_LIMIT_BYTES = 12 * 1024**3


def chain_path(kind: str, length: int) -> Path:
    """Return the file of a chain in the cache, written when it is not there."""
    file = cache_folder() / "chains" / f"{kind}-{length}.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(chains.build(kind, length), file)
    return file


def measure(tool: Tool, kind: str, repeats: int) -> list[list[Run]]:
    """Return the runs per length, lengths interleaved."""
    target = cache_folder() / "outputs" / tool.name / f"chain-{kind}" / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    runs: list[list[Run]] = [[] for _ in LENGTHS]
    for _ in range(repeats):
        for length, own in zip(LENGTHS, runs, strict=True):
            own.append(run(tool, chain_path(kind, length), target))
    return runs


def print_scaling(tool: Tool, repeats: int) -> None:
    """Print the seconds of every kind of chain, and the verdict."""
    table = Table("chain", *(f"{length:,} nodes" for length in LENGTHS), "ratio", "in CPU time")
    table.title = f"{tool.name}: seconds (load, simplify, save)"
    linear = 0
    for kind in chains.KINDS:
        runs = measure(tool, kind, repeats)
        error = next((item.error for own in runs for item in own if item.error), None)
        if error is not None:
            table.add_row(kind, "[red]failed[/red]", error[:80])
            continue
        short, long = (statistics.median(item.seconds for item in own) for own in runs)
        short_cpu, long_cpu = (statistics.median(item.seconds_cpu for item in own) for own in runs)
        ratio, ratio_cpu = long / short, long_cpu / short_cpu
        linear += ratio <= RATIO_LIMIT
        table.add_row(kind, f"{short:.3f}", f"{long:.3f}", f"{ratio:.1f}", f"{ratio_cpu:.1f}")
    CONSOLE.print(table)
    CONSOLE.print(f"ratio at most {RATIO_LIMIT:g}: {linear} of {len(chains.KINDS)}")


def print_large(tool: Tool) -> None:
    """Simplify the model of 2.5 GB once and print its time and peak memory."""
    source = cache_folder() / "chains" / "large" / "large.onnx"
    target = cache_folder() / "outputs" / tool.name / "large" / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    size = chains.write_large(source)
    result = run(tool, source, target)
    if result.error:
        CONSOLE.print(f"{tool.name} failed: {result.error}", markup=False)
        return
    written = sum(part.stat().st_size for part in target.parent.iterdir())
    CONSOLE.print(
        f"{tool.name}: {size / 1e9:.2f} GB in, {written / 1e9:.2f} GB out, {result.seconds:.1f} s, "
        f"peak {result.peak_rss_bytes / 1e9:.2f} GB ({result.peak_rss_bytes / size:.2f}x), "
        f"within 12 GB: {'yes' if result.peak_rss_bytes < LARGE_LIMIT_BYTES else 'no'}"
    )


def main() -> int:
    """Measure and print; exit code 2 for a tool that is not known."""
    parser = argparse.ArgumentParser(description="How time and memory grow with the model.")
    parser.add_argument("--tool", default="ours", help="ours, or one of the peers")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each chain")
    parser.add_argument("--large", action="store_true", help="a model of 2.5 GB instead of chains")
    arguments = parser.parse_args()
    try:
        tool = tools([arguments.tool])[0]
    except PeerError as error:
        CONSOLE.print(f"[red]{error}[/red]")
        return 2
    if arguments.large:
        print_large(tool)
    else:
        print_scaling(tool, arguments.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
