"""What commands beside `compress` do.

inspection         what a model file holds
pack               a model file to a packed one, with the figures of every coder
tensor_classes     which tensors of a file are coded together, and as what
sensitivity        what a pass does to the outputs on each layer or group alone
sensitivity_plot   that as a picture
"""
