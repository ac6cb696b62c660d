"""Remove whole residual branches, one after the other, until a budget is met.

meter    how much of the budget is met, and how much the removal of a branch brings
ranking  which branch does the least harm for what its removal brings
run      one run of prune-blocks

Which terms of sums are branches is in `analysis.branches`.
"""
