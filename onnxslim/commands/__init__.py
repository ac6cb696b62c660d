"""The subcommands of `onnxslim`: one module each, with a click command called `command`.

compress     run a pipeline; `onnxslim MODEL` is short for it
tune         find the pipeline that floors and targets ask for
passes       list the passes, or show one
retarget     write a model as another engine takes it
inspect      show the contents of model files
groups       show which channels can leave together
exits        show where a classifier can be left early
sensitivity  try a pass on each layer alone
compare      compare two models
check        hold a report against its files once more
bench        time models in turn
report       make a page of reports
explain      say why something was or was not done, from a report
pack         write a packed file
unpack       write the model of a packed file
demo         make a bundled model smaller in several ways
cache        show what a cache of steps holds, bound it or empty it
completion   print the script that completes in a shell
help         show the help of a command or the page of a pass

arguments    options that several subcommands share
files        files that commands write
measured     the JSON of what commands measure
streams      files on standard input and output
several      one pipeline on several models
failures     exit codes and sentences of errors
console      standard output and standard error
progress     bars on a terminal, lines elsewhere
"""

from __future__ import annotations

from collections.abc import Mapping

COMMANDS: Mapping[str, str] = {
    "compress": "Run a pipeline of passes on a model, prove each step, write the result.",
    "tune": "Find the pipeline that makes a model as small or fast as the floors allow.",
    "passes": "List the passes, or show the page and options of one.",
    "retarget": "Write a model in the forms that another engine takes, and compare outputs.",
    "inspect": "Show operators, parameters, MACs, bytes, inputs and outputs of models.",
    "groups": "Show which channels of a model can leave together, and what keeps the others.",
    "exits": "Show where a classifier can be left early, and how many samples could leave there.",
    "sensitivity": "Measure how far a pass on one layer or channel group alone moves the outputs.",
    "compare": "Compare drift, bytes and latency of two models.",
    "check": "Hold what a report claims against its files once more.",
    "bench": "Time models in turn; show latency with its spread.",
    "report": "Make a page of reports that were written; of several, side by side.",
    "explain": "Say later why something was or was not done, from a report alone.",
    "pack": "Pack a model into one small file for storage and transfer.",
    "unpack": "Unpack a packed file into the same model, to the byte.",
    "demo": "Make a bundled trained model smaller in several ways, and measure each.",
    "cache": "Show what a cache of steps holds; bound it or empty it.",
    "completion": "Print the script that completes commands, options and passes in a shell.",
    "help": "Show the help of a command, or the page of a pass.",
}
"""Name of a subcommand -> its line in `onnxslim --help`, which imports no subcommand."""
