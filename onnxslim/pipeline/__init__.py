"""Passes, pipelines of passes, and the manager that runs them and proves each step.

passes        Pass, Preset, Context: what a pass is and what it gets
targets       what engines take of a file, as a table
patterns      names that options give, literally or as shell patterns
options       typed options of a pass, with the constraints that check them
spelling      a pass as text
layer_filter  the options `only` and `skip`, and the layers that they select
rewrite_pass  passes of many rewrites, each of which can be left out
formulas      formulas in all their spellings, and what replaces them
raising       an opset raised inside a pass, and the proof of it
registry      passes by name, those of other distributions included
other_words   what passes and commands are called elsewhere
suggest       the closest name to a misspelt one
grammar       the text of a pipeline, parsed
trained_pass  passes that let the model learn between their steps
examples      command lines that show a pass
data_settings  how data become the inputs of a model
completing    the text of a pipeline, completed while it is typed
recipe        a pipeline and the settings of a run in a TOML file
recipe_schema  the form of such a file, for editors
output_words  what a user says of outputs
floors        limits on what lossy passes may cost, and which of them is missed
policy        when a step is kept
stats         the size of a model
prover        what the manager asks of onnxruntime
untouched     what a pass for all weights left as it was, where that is much
execution     one step run on a copy of a model
verification  a step held to its promise, and the pass to blame when it is broken
salvage       the rewrites to blame where a step makes the model worse
softening     as much of a step's strength as the floors allow
step_cache    what steps came to, kept for the next run that would take them
manager       the loop: run a step, verify it, judge it, commit it
"""
