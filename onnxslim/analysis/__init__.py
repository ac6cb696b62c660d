"""What can be known about a graph without running it. Passes ask; nothing here edits.

linear_operators  Conv, ConvTranspose, Gemm, MatMul: which input is what, how the weight lies
layers        the weight layers of a graph, seen alike: y = W·x with one matrix per group
affine        BatchNormalization, Mul, Add, ... read as y = a·x + b along one axis
absorption    layers that absorb such a map into their weight and bias
patterns      a declarative matcher for small subgraphs
flow          symbolic shapes and small integer values, followed through a graph
reshaping     targets of Reshape and Expand from symbolic sizes
cut           the constant part of a graph, taken out and run
branches      residual branches, and what is not needed without one
output_parts  which stretches of an output are quantities of their own
layer_models  small models of one layer, for a stopwatch
"""
