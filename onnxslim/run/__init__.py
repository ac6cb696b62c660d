"""One model, prepared once, and the pipelines that run on it: what `compress` is made of.

settings  RunSettings: data, seed, threads and what to measure; makes the prover and the context
requests  arguments of public functions, in any of their spellings
declared  what a model's metadata say of the pictures that it takes
conditions  what bears on every step of a run, for the cache of steps
prepared  PreparedRun: a model loaded, checked and measured, on which pipelines are tried
failed    the report of a run that an error ends
record    RunRecord made and spelled: what it takes to run the same again
output    the file that a pipeline's result is written to
"""
