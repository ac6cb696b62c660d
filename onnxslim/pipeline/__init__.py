"""Passes, pipelines of passes, and the manager that runs them and proves each step.

passes        Pass, Preset, Context: what a pass is and what it gets
options       typed options of a pass, with the constraints that check them
spelling      a pass as text
layer_filter  the options `only` and `skip`, and the layers that they select
replayable    the note that says how to repeat a decision made by timing
grammar       the text of a pipeline parsed
registry      passes by name, those of other packages included
suggest       the closest name to a misspelt one
recipe        a pipeline and its data in a TOML file
floors        limits on what lossy passes may cost, and which of them is missed
policy        when a step is kept
prover        what the manager asks of onnxruntime
stats         the size of a model
manager       runs, verifies, judges and commits steps, and finds the pass to blame
"""
