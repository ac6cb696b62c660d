"""Weights that take few values, in an ordinary ONNX file: small tables and packed codes.

weight           codes and tables, and the dense weight that onnxruntime computes from them
lookup_function  the model-local function that looks values up when a session starts
replacement      how a call of such a function takes the place of a constant
lookup           nodes that call a lookup function: write and read them
fixed_point      nodes that scale 16-bit integers, for weights of too many values for a table
nodes            both kinds of node: find them in a graph, and read their weights
sparse           weights that are mostly zero, as sparse initializers
"""
