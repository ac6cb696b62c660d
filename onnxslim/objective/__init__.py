"""One objective for all lossy weight passes: minimise E ‖(W − Ŵ) x‖² = tr (W − Ŵ) H (W − Ŵ)ᵀ.

H = E[x xᵀ] is streamed by `onnxslim.runtime.moments`; a pass is its constraint on Ŵ and its
rewrite.

    moments    H, E[x] and cross moments of one layer, and who streams them
    solver     the metric of H, the objective, targets, least squares, whitening
    masks      at most k non-zeros: magnitude, OBD, OBS, Wanda
    kmeans     tables of single values: optimal ones; level_codes: their codes
    vectors    tables of short vectors and sums of tables; vector_codes: with error feedback
    tables     entries from a table or a grid, with error feedback
    codebooks  from a problem to codes and a table; vector_codebooks, scaled_tables: its kin

    calibration    what passes may ask of the samples
    observations   ranges and histograms of tensors
    problems       one weight after another, with what bears on it
    layer_pass     base of the passes over them; codebook_pass: of those that store codes
    sensitivity    how much of a layer's error reaches the output, measured
    allocation     who gets how many zeros and values
    threads        how many threads linear algebra may use
"""
