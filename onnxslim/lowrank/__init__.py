"""The engine of `factorize-conv` and `factorize-dense`: layers split into several small operators.

base_pass    SplitPass: base of both passes, with their options
plan         the option that spells splits one by one
run          one run: choose splits, fit factors, rewrite the graph
trials       the decompositions that are tried on a layer, and which layers cannot be split
candidates   methods and ranks that a layer could be split by, with errors, work and run times
budget       how far each layer is split under a budget over the whole model
pieces       the operators that stand for the factors of a weight
rewrite      the pieces of a split layer put into the graph
"""
