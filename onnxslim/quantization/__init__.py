"""Integers in place of floats: grids, their ranges, and where QuantizeLinear pays.

grid              scale and zero point of a tensor; values to codes and back
ranges            which range of an activation a grid covers, and what that costs
range_choice      which of several ranges moves the outputs least
scales            how far the grid of each row of a weight reaches
weights           codes of weights: to nearest, with error feedback, settled one by one
blocks            how files hold such codes: DequantizeLinear, Cast and Mul, MatMulNBits
storing           how they take the place of a constant, and which way suits its readers

activations       the grids of all activations of a model
channel_maps      BatchNormalization and HardSigmoid as depthwise Convs
biases            32-bit biases, and weights that make room for them
rounding          the codes of all layers of a model
saturation        whether this machine's kernels need a bit less
recurrent         LSTM steps on integers, ranges taken at run time

rules             which operators have integer kernels, and when
clusters          a graph cut into what may become one integer kernel
insert            QuantizeLinear and DequantizeLinear around the chosen ones
canonical         forms that have integer kernels; the opset raised
costs             what every placement takes, from profiles
search            the placement that is in fact faster than float
floors            what goes back to float until the outputs are near enough

equalize          channels of neighbouring layers get ranges alike
smooth            ranges of activations go into weights
rescale           what these two write
"""
