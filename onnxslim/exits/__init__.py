"""Early exits: where a network can be left, with which head, and when that may be believed.

`points` finds tensors through which everything passes. `heads` fits a small classifier to such a
tensor in closed form. `thresholds` says how sure a head must be so that a promise holds on new
data. `graph` writes it down in ONNX, and `survey` measures what the choice between points is made
by.
"""
