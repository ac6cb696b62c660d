"""Properties of a graph that can be known without running it. Passes ask; nothing here edits.

linear_operators  Operators with weights: which input is what, how the weight lies
layers        the weight layers of a graph, seen alike: y = W·x with one matrix per group
layer_names   the names by which people know a node: its output's, its own, those of its weights
affine        BatchNormalization, Mul, Add, ... read as y = a·x + b along one axis
absorption    layers that absorb such a map into their weight and bias
patterns      a declarative matcher for small subgraphs
compound_operators  operators spelled out as onnxruntime fuses them
normalizations  the normalizations of a graph, as operators and spelled out
flow          symbolic shapes and small integer values, followed through a graph
zeros         tensors that hold nothing but zeros
softmax_reach  values that a Softmax makes zero, such as masked positions
same_grid     QuantizeLinear nodes that undo a DequantizeLinear
permuting     operators that commute with a permutation of axes
narrowing     what gets smaller where a tensor is no longer repeated
reshaping     constant targets of Reshape and Expand from symbolic sizes
axis_factors  axes as products of factors, followed through data movement
attention     attention as exporters spell it
cut           the constant part of a graph, cut out and run
pinned_sizes  open sizes of inputs that weights pin
input_roles   masks, indices, lengths: what the graph does with each input
input_demands  both of these, for a model
branches      residual branches, and the nodes that only one of them needs
data_sizes    outputs whose sizes depend on data, such as detections
token_inputs  inputs that index tables of tokens, the mask of their padding, caches of attention
output_kinds  what outputs hold: scores of classes or tokens, embeddings, other values
output_parts  parts of an output that a last Concat joins, such as boxes and scores
constant_sources  which constants alone determine a tensor
energy        the energy of a run by arithmetic, from operations and bytes moved
graph_outline  a graph as a few boxes, with what changed from another
activation_bytes  how much memory activations take
layer_models  small models of one layer, for a stopwatch
"""
