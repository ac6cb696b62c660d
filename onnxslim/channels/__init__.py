"""Which channels of a graph belong together, and how to cut them out of it.

labels             labels on the channels of a tensor, moved by numpy as values are
tracing            the sweep over a graph; labels that leave together become units
rules_layers       operators that mix channels: layers, products of activations
rules_movement     operators that only move values
rules_elementwise  operators that treat every position by itself
rules_sizes        operators that read or are told the size of an axis
removal            edits of operands and attributes that depend on a channel
groups             layers whose units are shared, and the cut
unpruned           layers that are in no group, and why

importance         what a unit is worth
activity           what a unit is worth by statistics of samples
removal_order      in which order a group loses units, and where it may stop
alignment          times of layers on this machine, and the channel multiple that runs fastest
work               what a graph costs without some units
budgets            how many units each group loses under a budget
reconstruct        the refit of the layers that read a group
scoring            the order of removal of each group, with its errors
run                one run of prune-channels
"""
