"""Integers in place of floats: grids, their ranges, and where QuantizeLinear pays.

grid                scale and zero point of a tensor; values to codes and back
calibration_ranges  the range of an activation that a grid covers, and what that costs
range_choice        which of several ranges moves the outputs least
effort              how much of a model may be run for that, and for smoothing
weight_scales       scales of weights: granularity, and clipping
weight_rounding     codes of weights: to nearest, with error feedback, by coordinate descent
weight_layouts      arrays of codes and scales, as the operators that decode them read them
weight_readers      products and Gather nodes that read one matrix, and how they are untied
weight_storage      which of these layouts suits a weight's readers
weight_nodes        writing it into the graph

activation_grids    the grids of all activations of a model
kernel_forms        operators without an integer kernel, expressed by operators that have one
biases              32-bit biases, and larger weight scales where a bias would overflow
layer_codes         the codes of all layers of a model
saturation          whether weights take 7 bits here, because 16-bit sums saturate without VNNI
dynamic_products    MatMul and Gemm on integers, with ranges found at run time
recurrent           LSTM steps on integers, with ranges found at run time

rules               which operators have integer kernels, and when
clusters            a graph cut into what may become one integer kernel
tied_tables         tables of embeddings that are the head, too
qdq                 QuantizeLinear and DequantizeLinear around the chosen clusters
cluster_times       what every placement takes, from profiles
placement_search    the placement that is measured to be faster than float
range_trial         whether ranges are found at run time, by a trial on a few samples
float_fallback      clusters that go back to float until the outputs are near enough

channel_scaling     scales of channels, moved between layers
equalize            cross-layer equalization: channels of neighbouring layers get equal ranges
smooth              SmoothQuant: ranges of activations moved into weights
product_smoothing   the same in front of products with ranges of run time; the search for alpha

int8_options        what a user asks of quantize-int8, and what a run settles
run                 one run of quantize-int8
weight_only         one run of quantize-weights
"""
