"""Numerical solvers: numpy and scipy only, no graph, no ONNX.

All lossy weight passes minimise E‖(W − Ŵ) x‖² = tr (W − Ŵ) H (W − Ŵ)ᵀ with H = E[x xᵀ], each under
a constraint on Ŵ of its own.

    metric          the objective, its metric H, targets, least squares, whitening
    masks           at most k non-zeros: magnitude, OBD, OBS, Wanda
    kmeans          tables of single values, and the codes into them
    tables          entries from a table or a grid, with error feedback
    vectors         tables of short vectors, and sums of tables
    vector_codes    codes into such tables, with error feedback
    low_rank        the best weight of a given rank
    decompositions  kernels as products of small factors
    threads         how many threads linear algebra may use
"""
