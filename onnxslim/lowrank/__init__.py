"""What `factorize-conv` and `factorize-dense` share: layers split into several small operators.

base_pass    SplitPass: base of both
candidates   what a layer could be split into, with errors, work and run times
trials       what is tried on a layer: methods, ranks, factors
gate         which splits pay, in bytes, in measured time, or in work
budget       how far each layer is split under a budget over the whole model
pieces       the operators that stand for the factors of a weight
rewrite      the pieces of a split layer put into the graph
"""
