"""k-means in one dimension, which can be solved exactly.

A level is one value of a table, a centroid; a code is the index of a level.

levels       a table for any number of values, or one for each row of a matrix
sorted_rows  rows of ascending values with their prefix sums
partition    the dynamic programme: the best split of sorted values into runs
optimum      the optimal levels of rows, long ones coarse to fine
lloyd        Lloyd's iteration and its starts
assignment   the nearest level of each value
pieces       arrays with weights, read in pieces that fit the cache
float_bins   floating-point numbers in bins, in their order
"""
