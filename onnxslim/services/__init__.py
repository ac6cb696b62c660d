"""Services that a `Context` offers to passes: protocols, and the records that they return.

`onnxslim.runtime` implements the protocols; nothing here runs a model.

    evaluator      the outputs of a small constant model
    calibration    all questions about the user's samples
    moments        second moments E[x xᵀ] of the inputs of a layer
    activity       statistics of single input channels
    channel_moments  means and variances of the channels of a tensor in two models
    observations   ranges and histograms of tensors
    stopwatch      run times on the user's machine
    layer_names    the names by which options may mean a layer
    training       a model that learns from others
    progress       what is being done, for whoever shows it
"""
