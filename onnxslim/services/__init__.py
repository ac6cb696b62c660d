"""What passes may ask through their `Context`: protocols, and the data that answers hold.

`onnxslim.runtime` implements the protocols; nothing here runs a model.

    evaluator      the outputs of a small constant model
    calibration    everything that is asked of the user's samples
    moments        second moments E[x xᵀ] of the inputs of a layer
    activity       statistics of single input channels
    observations   ranges and histograms of tensors
    stopwatch      run times on the user's machine
"""
