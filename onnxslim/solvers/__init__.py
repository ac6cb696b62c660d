"""Numerical solvers: numpy and scipy only, no graph, no ONNX.

All lossy weight passes solve one problem, each with a constraint set of its own:

    minimise E‖(W − Ŵ)·x‖² = tr (W − Ŵ) H (W − Ŵ)ᵀ over Ŵ in the set,   H = E[x xᵀ]

Masks, tables and grids, sums of vectors, and products of small factors are such sets.

    metric          the objective, and products with H, its inverse and its factor
    damping         H shrunk, damped and factored
    least_squares   the best weight for a set of zeros, or for other inputs
    masks           at most k non-zeros: magnitude, OBD, OBS, Wanda
    column_sweep    OBS column by column, one factor for all rows
    surgeon         OBS with a factor for each row
    kmeans          tables of single values, and the codes into them
    tables          the values that weights may have: a table or a grid
    feedback        rounding to such values with error feedback
    refinement      better values for given codes, better codes for given values
    vectors         tables of short vectors, and sums of tables
    vector_codes    codes into such tables, with error feedback
    low_rank        the best weight of a given rank
    decompositions  kernels as products of small factors
    threads         how many threads linear algebra may use
"""
