"""One objective for all lossy weight passes: minimise E ‖(W − Ŵ) x‖² = tr (W − Ŵ) H (W − Ŵ)ᵀ.

H = E[x xᵀ] is streamed by `onnxslim.runtime.moments`; a pass is its constraint on Ŵ and its
rewrite.

    moments    H, E[x] and cross moments of one layer, and who streams them
    solver     the metric of H, the objective, targets, least squares, whitening
    masks      at most k non-zeros: magnitude, OBD, OBS, Wanda
    tables     entries from a table or a grid, with error feedback
"""
