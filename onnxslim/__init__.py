"""onnxslim makes trained ONNX models smaller and faster, and proves every step by running it.

    import onnxslim
    model, report = onnxslim.compress("model.onnx", "small.onnx", passes="simplify")

Every public name is imported when it is first used, so `import onnxslim` costs next to nothing.
Inside, from the ground up; each package imports only what stands above it in this list:

    records       what a pass promises and what it reports
    report        the figures of a run
    limits        what a file may ask of the machine
    errors        every error that a user can meet, with its exit code
    linear_algebra  scipy.linalg, once it has its working memory
    graph         the graph that passes rewrite, and its edits
    render        figures as text, tables and JSON
    packing       the packed file format .onnxz
    io            model files in and out
    services      what passes may ask of samples and of a clock, as protocols
    analysis      what can be known about a graph without running it
    codebook      weights as codes and tables
    solvers       numerical solvers, without graph and without ONNX
    pipeline      passes, pipelines, and the manager that runs and proves them
    lossy         what lossy weight passes share: one layer after another
    lowrank       layers split into several small operators
    channels      which channels leave together, in which order, and how they are cut out
    blocks        residual branches that leave as a whole
    quantization  integers in place of floats
    precision     float16 in place of float32
    exits         classifiers that are left early
    run           one model, prepared once, and the pipelines that run on it
    tools         what the other commands do
    api           compress, compare_models, bench_models
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
    "UsageError": "errors",
    "at_least": "pipeline.options",
    "bench_models": "api",
    "compare_models": "api",
    "compress": "api",
    "interval": "pipeline.options",
    "one_of": "pipeline.options",
    "option": "pipeline.options",
    "parse_pipeline": "pipeline.grammar",
    "report_to_json": "render.json",
    "report_to_text": "render.text",
}

if TYPE_CHECKING:
    from onnxslim.api import bench_models, compare_models, compress
    from onnxslim.errors import (
        FloorMissed,
        ModelError,
        NotApplicable,
        OnnxslimError,
        PromiseBroken,
        RuntimeFailure,
        UsageError,
    )
    from onnxslim.graph.rewrite import Rewriter
    from onnxslim.io.model import Model
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

__all__ = [
    "Change",
    "Comparison",
    "Context",
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
    "UsageError",
    "at_least",
    "bench_models",
    "compare_models",
    "compress",
    "interval",
    "one_of",
    "option",
    "parse_pipeline",
    "report_to_json",
    "report_to_text",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module `onnxslim` has no attribute `{name}`")
    value: object = getattr(importlib.import_module(f"onnxslim.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
