"""Early exits: where a network can be left, with which head, and when that may be believed.

points      tensors through which all data pass: the places for an exit
operators   the operators of an exit: features, head, scores, confidence
thresholds  confidence thresholds that keep a promise on new data
promises    what is promised of new samples: agreement, or accuracy on labels
heads       exit heads fitted in closed form to the network's own answers
nested_ifs  exits inserted into a graph as nested Ifs
candidates  candidate exits: their latency and their heads, measured
planning    which exits to insert, with which thresholds
twin        a model with exits as one that every sample goes through to the end
training    heads, and with them the network, trained together
retraining  exits that a model has already, trained with its network
run         one run of inject-exits: all of the above in order
"""

from onnxslim.callable_package import make_callable

make_callable(__name__)
