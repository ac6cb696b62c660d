"""onnxslim makes trained ONNX models smaller and faster, and proves every step by running it.

Simplify a model and write it. What does not pay is left out, and the report says why:

    >>> import onnxslim
    >>> model, report = onnxslim.compress("lenet5.onnx", "small.onnx", measure=False)
    >>> print(report)
    lenet5.onnx -> small.onnx: 1,727,013 -> 1,726,488 bytes, 21 -> 8 nodes
    kept: simplify

Give data, and lossy passes can be judged. `calibration` has samples without labels, `evaluation`
has labels, or is a metric. A step that falls below a floor is left out:

    >>> model, report = onnxslim.compress(
    ...     "lenet5.onnx",
    ...     passes=["simplify", "quantize-weights:bits=8"],
    ...     calibration="mnist_calib.npz",
    ...     evaluation="mnist_eval.npz",
    ...     floors={"max-drop": 0.5},
    ...     goal="bytes",
    ...     measure=False,
    ... )
    >>> report.after.stats.file_bytes < 500_000
    True
    >>> report.before.accuracy - report.after.accuracy < 0.005
    True

Data are a file, a folder of pictures, arrays, a list, a dataset, a data loader, or a function that
returns samples. `data` says how they are read; `report.data` says how they were understood:

    >>> import numpy
    >>> def stream():
    ...     for seed in range(20):
    ...         pixels = numpy.random.default_rng(seed).integers(0, 256, (1, 28, 28), numpy.uint8)
    ...         yield {"pixels": pixels}
    >>> _, report = onnxslim.compress(
    ...     "lenet5.onnx", calibration=stream, data={"scale": 1 / 255}, measure=False
    ... )
    >>> print(*report.data)
    calibration: samples of `stream`; `...` float32 [1, 1, 28, 28], 0 to 1...

Look before you cut: what there is, what a file holds, which channels may leave, what each layer
stands for. `sensitivity` and `exits` ask the samples.

    >>> [item.name for item in onnxslim.passes() if item.name.startswith("prune")]
    ['prune-blocks', 'prune-channels', 'prune-residual-stream', 'prune-vocabulary',
    'prune-weights']
    >>> onnxslim.inspect("lenet5.onnx").operators["Conv"]
    2
    >>> onnxslim.groups("lenet5.onnx", passes="simplify").totals["groups"]
    4

The smallest file, for storage and transfer, and the same model back, to the byte:

    >>> packed = onnxslim.pack("small.onnx", "small.onnxz", measure=False)
    >>> onnxslim.unpack("small.onnxz", "again.onnx").stat().st_size
    1726488

Every error is an `OnnxslimError` with one sentence that says what to do. `FloorMissed` says that a
step was left out, and carries the best `model` and the `report`:

    >>> try:
    ...     onnxslim.compress("lenet5.onnx", passes="simplfy")
    ... except onnxslim.UsageError as error:
    ...     print("did you mean `simplify`" in str(error).lower())
    True

Every public name is imported when it is first used, so `import onnxslim` costs next to nothing.
Inside, from the ground up; each package imports only what stands above it in this list:

    callable_package  packages that are functions as well
    records       what a pass promises and what it reports
    details       what a report tells beyond totals: layers, energy, graphs, tuning
    report        the figures of a run
    limits        what a file may ask of the machine
    errors        every error that a user can meet, with its exit code
    linear_algebra  scipy.linalg, once it has its working memory
    graph         the graph that passes rewrite, and its edits
    render        figures as text, tables and JSON
    pages         pages of reports, as HTML and Markdown
    packing       the packed file format .onnxz
    io            model files in and out
    services      what passes may ask of samples and of a clock, as protocols
    analysis      what can be known about a graph without running it
    codebook      weights as codes and tables
    constraints   what stored weights obey, read from the graph
    solvers       numerical solvers, without graph and without ONNX
    pipeline      passes, pipelines, and the manager that runs and proves them
    lossy         what lossy weight passes share: one layer after another
    lowrank       layers split into several small operators
    channels      which channels leave together, in which order, and how they are cut out
    blocks        residual branches that leave as a whole
    vocabulary    tokens that texts never use
    quantization  integers in place of floats
    precision     float16 in place of float32
    exits         classifiers that are left early
    lowering      files in the forms that another engine takes
    residual      residual streams of transformers in fewer columns
    substitution  small blocks in the place of convolutions
    run           one model, prepared once, and the pipelines that run on it
    tools         what the other commands do
    tuning        engine of tune: one budget over all passes
    api           public functions that run or write: compress, pack, ...
    surveys       public functions that only look: inspect, groups, ...
    commands      the subcommands of `onnxslim`
    cli           the command `onnxslim`

`passes` holds one rewrite pass a module; `runtime` all that touches onnxruntime or data.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from onnxslim.version import VERSION

__version__ = VERSION

# `passes` and `runtime` are installed inside this package, and stand beside it in a checkout
_CHECKOUT = os.path.dirname(__path__[0])
if not os.path.isdir(os.path.join(__path__[0], "passes")):
    __path__.append(_CHECKOUT)

# where each public name is defined
_HOME = {
    "Change": "records",
    "Comparison": "report",
    "Context": "pipeline.passes",
    "DataSettings": "pipeline.data_settings",
    "Drift": "report",
    "Fidelity": "records",
    "FileReport": "report",
    "FloorMissed": "errors",
    "Floors": "pipeline.floors",
    "Latency": "report",
    "LatencyPair": "report",
    "Model": "io.model",
    "ModelError": "errors",
    "NotApplicable": "errors",
    "OnnxslimError": "errors",
    "PartReport": "report",
    "Pass": "pipeline.passes",
    "PassManager": "pipeline.manager",
    "PassResult": "records",
    "Pipeline": "pipeline.grammar",
    "Preset": "pipeline.passes",
    "PromiseBroken": "errors",
    "Report": "report",
    "Rewriter": "graph.rewrite",
    "RuntimeFailure": "errors",
    "Skip": "records",
    "Stats": "report",
    "StepReport": "report",
    "TargetMissed": "errors",
    "UsageError": "errors",
    "at_least": "pipeline.options",
    "bench_models": "api",
    "compare_models": "api",
    "compress": "api",
    "exits": "surveys",
    "groups": "surveys",
    "inspect": "surveys",
    "interval": "pipeline.options",
    "one_of": "pipeline.options",
    "option": "pipeline.options",
    "pack": "api",
    "parse_pipeline": "pipeline.grammar",
    "passes": "surveys",
    "report_to_json": "render.json",
    "report_to_text": "render.text",
    "retarget": "api",
    "sensitivity": "surveys",
    "tune": "api",
    "unpack": "api",
}

_FUNCTIONS = ("exits", "passes")  # packages that are functions as well

if TYPE_CHECKING:
    from onnxslim.api import bench_models, compare_models, compress, pack, retarget, tune, unpack
    from onnxslim.errors import (
        FloorMissed,
        ModelError,
        NotApplicable,
        OnnxslimError,
        PromiseBroken,
        RuntimeFailure,
        TargetMissed,
        UsageError,
    )
    from onnxslim.graph.rewrite import Rewriter
    from onnxslim.io.model import Model
    from onnxslim.pipeline.data_settings import DataSettings
    from onnxslim.pipeline.floors import Floors
    from onnxslim.pipeline.grammar import Pipeline, parse_pipeline
    from onnxslim.pipeline.manager import PassManager
    from onnxslim.pipeline.options import at_least, interval, one_of, option
    from onnxslim.pipeline.passes import Context, Pass, Preset
    from onnxslim.records import Change, Fidelity, PassResult, Skip
    from onnxslim.render.json import report_to_json
    from onnxslim.render.text import report_to_text
    from onnxslim.report import (
        Comparison,
        Drift,
        FileReport,
        Latency,
        LatencyPair,
        PartReport,
        Report,
        Stats,
        StepReport,
    )
    from onnxslim.surveys import exits, groups, inspect, passes, sensitivity

__all__ = [
    "Change",
    "Comparison",
    "Context",
    "DataSettings",
    "Drift",
    "Fidelity",
    "FileReport",
    "FloorMissed",
    "Floors",
    "Latency",
    "LatencyPair",
    "Model",
    "ModelError",
    "NotApplicable",
    "OnnxslimError",
    "PartReport",
    "Pass",
    "PassManager",
    "PassResult",
    "Pipeline",
    "Preset",
    "PromiseBroken",
    "Report",
    "Rewriter",
    "RuntimeFailure",
    "Skip",
    "Stats",
    "StepReport",
    "TargetMissed",
    "UsageError",
    "at_least",
    "bench_models",
    "compare_models",
    "compress",
    "exits",
    "groups",
    "inspect",
    "interval",
    "one_of",
    "option",
    "pack",
    "parse_pipeline",
    "passes",
    "report_to_json",
    "report_to_text",
    "retarget",
    "sensitivity",
    "tune",
    "unpack",
]


def __getattr__(name: str) -> object:
    if name in _FUNCTIONS:
        return importlib.import_module(f"onnxslim.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module `onnxslim` has no attribute `{name}`")
    value: object = getattr(importlib.import_module(f"onnxslim.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
