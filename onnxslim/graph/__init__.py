"""The graph that passes rewrite: its classes, its edits, and plain questions about it.

ir          Graph, Node, Variable, Constant: onnx-graphsurgeon's classes, compared by identity
rewrite     Rewriter: every edit of a graph, checked before it is made, and logged
opset           a model raised to a later opset of the standard
opset_adapters  what changed in operators from opset to opset
order       nodes sorted producers first, as few moved as possible
moved_constants  constants that a file moves or casts before an operator reads them
operands    constants, axes and pads that a node reads, at any opset
dims        rank and known sizes of one tensor
sizes       sizes known up to symbols, and arithmetic on them
file_bytes  bytes that constants and nodes take in a file
counts      nodes, constants and multiply-accumulates of a graph
functions   domain and names of onnxslim's model-local functions
local_functions  who calls a model's functions, and their bodies as graphs
inlining    calls of local functions replaced by their bodies
clone       copies of a graph that share weight arrays
owners      which graph writes which constant
proto       protobuf messages to graph and back, without loss
wire        the bytes of a file: weights cut out before protobuf sees them, spliced in after
collector   Python's garbage collector, paused while many objects are made
"""
