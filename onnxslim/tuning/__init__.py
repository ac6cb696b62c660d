"""Engine of `onnxslim tune`: one budget over all passes.

    answer = tune(model, "small.onnx", TuneRequest(aim, ...), settings)

aims        what is to become small, how far, and what must hold
families    the passes that are tried, and each at a part of its strength
table       what each layer or group costs in each variant, measured once
program     the choice of a variant for each layer, exactly
trials      whole models: a pipeline run, judged and timed
from_table  the choice from the table, corrected by whole models
study       the search over pipelines, whose trials several processes share
trained     how hard the structure may be changed where training follows
front       the models that nothing beats
confirmation  answers on samples that chose nothing
workers     the same search in more processes, and what becomes of those that die
run         a request from start to end: table, search, confirmation, files
"""
