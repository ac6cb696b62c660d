"""Decompositions of a kernel W[n, c, k...] into factors that are cheap to apply in turn.

base          what every decomposition answers: error, factors, their product
closed_form   factors that are principal components
iterative     factors that are searched for, for each rank
methods       the decompositions by name
"""
