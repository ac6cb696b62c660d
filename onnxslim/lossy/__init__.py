"""What lossy weight passes share: one layer after another, solved under a constraint.

table_reads      how often samples read each row of a table
problems         each weight as a problem: its targets, its metric, and how its answer goes in
refit_trial      a refit that stays where samples held back confirm it
normalization_refit  scales and shifts of normalizations fitted to the original model
sign_activations  inputs of layers as signs times a scale
layer_pass       base of the passes that give weight layers new weights
codebook_pass    base of those whose weights are stored as codes
codebooks          codes and tables as the answer to one problem
scalar_codebooks   tables of free values
scaled_codebooks   tables whose values are multiples of a few scales
vector_codebooks   product and residual quantization
error_gain       how much of a layer's error reaches the output of the model, measured
gate             which replacements of a layer pay
spend            one offer for each layer, for the least error within a budget
allocation       the offers of a layer: zeros and values, with their bytes and errors
allocation_search  the smallest allocation that holds the floors, found by trying
budgets          a budget over the whole model, and how much of it a model takes
budgeted_pass    base of the passes that take a budget, and the options that set one
min_cut          placement of operators on two sides, as a minimum cut
"""
