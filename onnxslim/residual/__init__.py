"""Residual streams of transformers in a basis with fewer columns.

rules           how labels of channels go through a graph whose channels may be mixed
streams         which streams can be rotated, and why others cannot
basis           the directions that a stream keeps, and what readers are multiplied by
exits           products where channels leave the basis of a stream
rotation        every constant of a stream in its new basis, and the cut
run             one run of prune-residual-stream
"""
