"""Samples that models are run on.

sources         .npz files, folders, `module:function`, arrays: what users give
npz             arrays in .npz and .npy files, never unpickled
user_function   functions named as `module:function`
fitting         whether arrays can be the inputs of a model
rows            samples as rows of arrays
stream          samples as a stream of runs
input_sizes     sizes for what the shapes of inputs leave open
seeded          inputs made up from a seed
"""
