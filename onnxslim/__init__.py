"""onnxslim makes trained ONNX models smaller and faster, and proves every step by running it.

    import onnxslim
    model, report = onnxslim.compress("model.onnx", "small.onnx", passes="simplify")

Every name below is imported when it is first used, so `import onnxslim` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from onnxslim.version import VERSION

__version__ = VERSION

# where each public name is defined
_HOME = {
    "Change": "records",
    "Comparison": "report",
    "Context": "contract",
    "Drift": "report",
    "Fidelity": "records",
    "FileReport": "report",
    "FloorMissed": "errors",
    "Floors": "floors",
    "Latency": "report",
    "LatencyPair": "report",
    "Model": "model",
    "ModelError": "errors",
    "NotApplicable": "errors",
    "OnnxslimError": "errors",
    "PartReport": "report",
    "Pass": "contract",
    "PassManager": "manager",
    "PassResult": "records",
    "Pipeline": "pipeline",
    "Preset": "contract",
    "PromiseBroken": "errors",
    "Report": "report",
    "Rewriter": "rewrite",
    "RuntimeFailure": "errors",
    "Skip": "records",
    "Stats": "report",
    "StepReport": "report",
    "UsageError": "errors",
    "at_least": "options",
    "bench_models": "api",
    "compare_models": "api",
    "compress": "api",
    "interval": "options",
    "one_of": "options",
    "option": "options",
    "parse_pipeline": "pipeline",
    "report_to_json": "render",
    "report_to_text": "render",
}

if TYPE_CHECKING:
    from onnxslim.api import bench_models, compare_models, compress
    from onnxslim.contract import Context, Pass, Preset
    from onnxslim.errors import (
        FloorMissed,
        ModelError,
        NotApplicable,
        OnnxslimError,
        PromiseBroken,
        RuntimeFailure,
        UsageError,
    )
    from onnxslim.floors import Floors
    from onnxslim.manager import PassManager
    from onnxslim.model import Model
    from onnxslim.options import at_least, interval, one_of, option
    from onnxslim.pipeline import Pipeline, parse_pipeline
    from onnxslim.records import Change, Fidelity, PassResult, Skip
    from onnxslim.render import report_to_json, report_to_text
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
    from onnxslim.rewrite import Rewriter

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
