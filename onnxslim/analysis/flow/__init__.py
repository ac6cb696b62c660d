"""Symbolic sizes through a graph: shapes and small integer values.

size_flow     SizeFlow: asks the rules, each node once
shape_rules   shapes of what operators return
value_rules   values of small integer tensors
"""
