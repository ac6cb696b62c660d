"""Which channels of a graph belong together, and how to cut them out of it.

facets            names on a tensor, moved by numpy
rules_*           what each operator does with names
follow            the sweep over a graph; names that leave together become units
removal           edits: operands and attributes that depend on a channel
groups            layers whose units are shared; `shrink` cuts units out
"""
