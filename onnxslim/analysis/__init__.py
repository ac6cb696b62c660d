"""What can be known about a graph without running it; passes ask, nothing here edits.

operands     constants, axes, pads of a node, whatever the opset
sizes        arithmetic on sizes that are known up to symbols
flow         shapes and small integer values followed through a graph (flow_shapes, flow_values)
affine       BatchNormalization, Mul, Add, ... read as y = a·x + b along one axis
linear       Conv, ConvTranspose, Gemm, MatMul read as one kind of layer
reshaping    targets of Reshape and Expand
patterns     a declarative matcher for small subgraphs
cut          the constant part of a graph, taken out and run
"""
