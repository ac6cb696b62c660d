"""k-means in one dimension, which can be solved exactly.

levels      tables for one array of values
rows        tables for many sorted rows at once
partition   the dynamic programme behind both: the best split of sorted values into runs
codes       arrays of values to codes: the index of the nearest level
"""
