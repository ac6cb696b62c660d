"""The subcommands of `onnxslim`: one module each, with a click command called `command`.

compress     run a pipeline; `onnxslim MODEL` is short for it
passes       what passes there are
inspect      what is in model files
groups       which channels can leave together
exits        where a classifier can be left early
sensitivity  what a pass does on each layer alone
compare      two models side by side
bench        latency of models, measured in turn
pack         a model to a packed file
unpack       the model in a packed file
demo         the main job on a bundled model

arguments    parameter types and options that several subcommands share
files        files that commands write
console      standard output, standard error, progress
"""

from __future__ import annotations

from collections.abc import Mapping

COMMANDS: Mapping[str, str] = {
    "compress": "Run a pipeline of passes on a model, prove it, write the result.",
    "passes": "What passes there are; one pass's page and options.",
    "inspect": "Operators, parameters, MACs, bytes, inputs and outputs of models.",
    "groups": "Which channels of a model can leave together, and what keeps the others.",
    "exits": "Where a classifier can be left early, and how many samples could leave there.",
    "sensitivity": "What a pass does to the outputs on each layer or channel group alone.",
    "compare": "Drift, bytes and latency of two models side by side.",
    "bench": "Latency of models, measured in turn, with spread.",
    "pack": "One small file for storage and transfer, in place of a model.",
    "unpack": "The model in a packed file, to the byte.",
    "demo": "The whole thing on a bundled trained model and data.",
}
"""Name -> what `onnxslim --help` says of it, without importing it."""
