"""The operators of ONNX as functions of torch, entered into one table.

table             the table, and what a builder knows of its node
element_types     types of elements
straight_through  roundings that gradients pass
elementwise       operators that take each element alone
casts             changes of type, and constants
reductions        sums, products and the like over axes
movement          operators that only move elements
linear            products of matrices
convolution       convolutions
pooling           pools
normalization     normalisations
control_flow      If, Loop and Scan
"""
