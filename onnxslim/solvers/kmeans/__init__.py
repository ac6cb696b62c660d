"""k-means in one dimension, which can be solved exactly.

levels      tables for one array of values, and for many rows at once
partition   the dynamic programme behind both: the best split of sorted values into runs
lloyd       Lloyd's iteration and its starts, on many rows at once
assignment  the nearest level of each value
"""
