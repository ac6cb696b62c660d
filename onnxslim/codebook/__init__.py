"""Weights that take few values, in an ordinary ONNX file: a small table and packed codes.

weight       such a weight: codes and tables, and the dense values that onnxruntime computes
function     the model-local function that looks the values up when a session starts
fixed_point  16-bit integers and one scale, for values too many for a table
placing      how a node of such a function takes the place of a constant
nodes        its node in a graph: put there, found, read
sparse       weights that are mostly zero, as sparse initializers
"""
