"""What the stored weights of a graph obey, read from the graph itself, so that training keeps it.

values   zeros, few values and short binary numbers, as the numbers of a constant show them
places   where operators read float constants: which are weights, and why the others stay
stored   one record for each stored weight: free, zeros stay, values tied, on levels, on a grid
coded    records of weights that nodes compute from codes: tables, grids of integers, biases
read     all stored weights of a graph
storing  new values for them, in the form that they have
dense    a copy of a model in which coded weights are constants, for training
groups   elements that a regularizer brings to zero together
starting  values to start from in place of those that the file has
"""
