"""Early exits: where a network can be left, with which head, and when that may be believed.

points      tensors through which everything passes
emit        operators of an exit: features, head, scores, confidence
thresholds  how sure a head must be, so that a promise holds on new data
heads       heads fitted in closed form to what the network answers
nested_ifs  exits put into a graph
survey      what leaving at each point would bring, measured
planning    which exits to put in, with which thresholds
"""
