"""Samples that models are run on.

sources         the ways in which users give samples: files, folders, functions, arrays
npz             arrays in .npz and .npy files, never unpickled
user_function   functions named as `module:function`
fitting         check and convert arrays for the inputs of a model
rows            samples as rows of arrays
stream          samples as a stream of runs
digest          the sha256 of samples, for the record of a run
input_sizes     sizes for the open dimensions of inputs
timing_sizes    sizes that people use, for models to be timed on
role_values     values for inputs that are masks, indices, ...
seeded          inputs generated from a seed
"""
