"""Samples that models are run on.

sources         the ways in which users give samples: files, folders, functions, arrays
given           what a user gave, with the settings to read it by
user_values     tensors, tuples and datasets of other libraries as arrays
kept_items      what can be read only once, kept on disk
npz             arrays in .npz and .npy files, never unpickled
pictures        folders of pictures
texts           texts through a tokenizer
sounds          folders of sounds
labelled_files  labels by the folders that files lie in
extras          libraries that only some users need
user_function   functions named as `module:function`
fitting         check and convert arrays for the inputs of a model
filling         inputs that the user says one value of
rows            samples as rows of arrays
items           samples as items, each the input of one run
stream          samples as a stream of runs
subsets         parts of the samples, chosen by number
describe        what was understood of samples, in one line
digest          the sha256 of samples, for the record of a run
spool           arrays kept in a temporary file
input_sizes     sizes for the open dimensions of inputs
timing_sizes    sizes that people use, for models to be timed on
role_values     values for inputs that are masks, indices, ...
seeded          inputs generated from a seed
"""
