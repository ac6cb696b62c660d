"""A model in the forms that its target takes: what stands in the way, and what replaces it.

obstacles      what a target does not take, node by node
dense_weights  weights that are stored in forms of onnxruntime, as plain constants or by decoders
code_forms     codes of DequantizeLinear and MatMulNBits in forms that more engines have
zero_points    grids without zero points, and biases without codes
branches       If, as both of its branches
floats         operators on integers or in float16, in float32
opsets         the opset that a file declares, as low as its operators allow
run            all of these in order
"""
