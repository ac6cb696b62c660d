"""Which channels of a graph belong together, and how to cut them out of it.

facets            names on a tensor, moved by numpy
rules_*           what each operator does with names
follow            the sweep over a graph; names that leave together become units
removal           edits: operands and attributes that depend on a channel
groups            layers whose units are shared; `shrink` cuts units out
left_alone        layers that are in no group, and why

importance        what a unit is worth; activity is about what samples say of channels
ladder            in which order a group loses units, and where it may stop
work              what a graph costs without some units, and which rungs are chosen for it
alignment         what layers take on this machine
budgets           a budget becomes rungs
reconstruct       what readers say of units, and their refit
judging           ladders with their errors
pruning           one run of prune-channels
"""
