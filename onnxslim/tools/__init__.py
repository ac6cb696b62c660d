"""The work behind the commands other than `compress`.

inspection         the contents of a model file
pack               a model file to a packed one, with the figures of every coder
tensor_classes     which tensors of a file are coded together, and as what
grouping           channel groups, and layers that are left alone
sensitivity        drift, bytes and work of a pass on each layer or group alone
sensitivity_plot   a chart of sensitivity
layer_figures      layers with weights, as files store them, before beside after
details            what a report tells of both models, part by part
explanation   a report read again, and what it says of a layer
claims        what a report claims of its files, held against them once more
"""
