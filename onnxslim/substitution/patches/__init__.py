"""Blocks on patches of their input: what they compute there, and what they are to compute.

sketch    a block as steps, computed and differentiated
evidence  patches with the outputs that belong to them
terms     the parts of a linear map of patches that carry most, where blocks start from
"""
