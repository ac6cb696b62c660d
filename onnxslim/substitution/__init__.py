"""The engine of `substitute-blocks`: small blocks in the place of convolutions.

patches      blocks on patches of their input: steps, evidence, terms
kinds        the kinds of block, one file each
places       where a block fits: a convolution, or a run of them
measuring    patches and outputs at positions drawn from the samples
fitting      values for a block: its start, least squares, a few descending steps
written      a block as operators
choices      a kind with its sizes, as the option `plan` spells it
costs        what a place takes, as it is and as a block
placed       a block put into a graph
distilling   each block trained alone
run          one run: choose, fit, train, put
"""
