"""k-means in one dimension, which can be solved exactly.

A level is one value of a table, a centroid; a code is the index of a level.

levels      a table for any number of values, or one for each row of a matrix
partition   sorted rows, and the dynamic programme that splits them best into runs
optimum     the optimal levels of rows, long ones coarse to fine
lloyd       Lloyd's iteration and its starts
assignment  the nearest level of each value
pieces      values with weights, in pieces that fit the cache and in bins
"""
