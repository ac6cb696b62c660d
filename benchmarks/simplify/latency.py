"""Is a simplified model faster in onnxruntime? Ours and the peers', timed in turn with the input.

    python -m benchmarks.simplify.latency [MODEL ...]

Takes the outputs that `benchmarks.simplify` left in the cache, so run that first. Every row is one
run in which all models take turns; a figure is input / output with the 95 % interval of the median
ratio, above 1 is faster.
"""

import json
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import reporting
from benchmarks.models.zoo import ZooModel, cache_folder, models, path, sample_inputs
from onnxslim.api import bench_models
from onnxslim.errors import OnnxslimError
from onnxslim.report import LatencyPair

CONSOLE = Console(width=150)
TOOLS = ("ours", "OnnxSlim", "onnxsim", "onnxscript")
RESULTS = reporting.RESULTS / "latency.json"


def measure(model: ZooModel) -> tuple[float, dict[str, LatencyPair]]:
    """Milliseconds of the input, and each tool's output as a pair with it."""
    folder = cache_folder() / "outputs"
    found = {tool: folder / tool / model.name / "model.onnx" for tool in TOOLS}
    found = {tool: file for tool, file in found.items() if file.exists()}
    sample = {name: np.asarray(array) for name, array in sample_inputs(model, 1, 0)[0].items()}
    rows = bench_models([path(model), *found.values()], calibration=[sample])
    pairs = {tool: row[2] for tool, row in zip(found, rows[1:], strict=True) if row[2] is not None}
    return rows[0][1].median, pairs


def main() -> None:
    """Measure, print one row a model, and write the figures of a complete run."""
    wanted = sys.argv[1:]
    table = Table("model", "input", *TOOLS, title="input / output latency")
    results: dict[str, object] = {}
    for model in models(wanted or None):
        try:
            median, pairs = measure(model)
        except OnnxslimError as error:
            table.add_row(model.name, "failed", str(error)[:80])
            continue
        cells = [_cell(pairs[tool]) if tool in pairs else "-" for tool in TOOLS]
        table.add_row(model.name, f"{median:.2f} ms", *cells)
        results[model.name] = {
            "input_ms": median,
            **{tool: [pair.ratio, pair.low, pair.high] for tool, pair in pairs.items()},
        }
    CONSOLE.print(table)
    if not wanted:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _cell(pair: LatencyPair) -> str:
    return f"{pair.ratio:.2f} ({pair.low:.2f} to {pair.high:.2f})"


if __name__ == "__main__":
    main()
