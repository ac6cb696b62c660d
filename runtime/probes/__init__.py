"""Statistics of the inside of a model on the calibration samples.

calibration_runs   CalibrationRuns answers what passes ask of the samples
exposed            inner tensors as outputs of a copy of the model
unfold             input tensor of a layer to the vectors that its weight multiplies
products           sums of products of rows
moment_sums        sums over inputs and outputs of layers, and moments from them
moments            second moments of the inputs of layers
channel_activity   statistics of single channels
channel_sums       channels of one tensor in two models
layer_drift        how far outputs of layers are from those of another model
observers          ranges and histograms
activation_cache   activations kept where a run ended
replay             variants of a model, run from the first node that differs
value_numbering    tensors of two models that certainly hold the same value
"""
