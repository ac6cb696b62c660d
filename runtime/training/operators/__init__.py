"""The operators of ONNX as functions of torch, entered into one table.

table             the table, and what a builder knows of its node
element_types     types of elements
straight_through  roundings that gradients pass
grids             codes on a grid, with gradients
elementwise       operators that take each element alone
casts             changes of type
reductions        sums, products and the like over axes
movement          operators that only move elements
sequences         sequences of tensors
linear            products of matrices
convolution       convolutions
pooling           pools
normalization     normalisations
attention         attention and rotary embeddings
recurrent         LSTM, GRU and RNN
quantization      operators of quantised models
resizing          Resize and Upsample
sampling          images read at computed positions
signal            Fourier transforms
microsoft         other operators of onnxruntime's own
random            operators that draw
selection         operators that choose, without gradient
control_flow      If, Loop and Scan
"""
