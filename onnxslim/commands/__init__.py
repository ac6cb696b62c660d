"""The subcommands: one module each, with a click command called `command`."""

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
