"""Which channels of a graph belong together, how to choose some of them, and how to cut them out.

Which channels belong together:

labels               the labels on the channels of a tensor, as arrays that numpy moves like values
cutting              which labels leave, and how edits are applied
edits_operands       edits of constant operands and of attributes that count channels
edits_movement       edits of operators that pick or reorder channels
edits_sizes          edits of lists of sizes
pointwise            the operators that treat every position alike
repeats              tensors that hold the same values all along an axis
caches               inputs that hold the keys or values of earlier positions
tracing              the sweep over a graph: labels are moved, merged, or pinned with a reason
rules_products       how labels go through products of two activations
rules_attention      how labels go through Attention and RotaryEmbedding as operators
rules_layers         how labels go through layers with weights
rules_normalization  how labels go through normalizations
rules_elementwise    how labels go through elementwise operators, reductions and pooling
rules_sizes          how sizes that are read from the graph and told to operators follow labels
rules_movement       how labels go through operators that rearrange, repeat or pad
rules_parts          how labels go through operators that join, split or pick
units                labels that were merged leave together: they are one unit
groups               layers whose units are shared, and the cut
unpruned             layers that are in no group, and why

Which of them leave, and what is done about it:

evidence             what the layers that read a group say of its units
rankings             rankings of units that take an algorithm
criteria             the table of criteria: what a unit is worth
readers              the layers that read groups, and one look at their moments
reconstruct          the refit of these layers, and zeros for units that are gone
sensitivities        what removals do to the output of the model, by trial
removal_order        the order in which a group loses units, and the levels at which it may stop
scoring              the removal order of each group, with its errors
alignment            times of layers on this machine, and the channel multiple that runs fastest
work                 what a graph costs without some units
levels               the levels that pay best for a given cost
budgets              how many units each group loses under a budget
latency_search       the same for a budget of latency, by timing whole models
run                  one run of prune-channels

**Why does `prune-channels` keep a channel?** `onnxslim groups MODEL` prints the reasons, and the
report of a run has them as skips. To find where a reason comes from, follow it backwards:

1. `run.Pruning` (`_report_pins`) and `commands/groups.py` print `ChannelGroup.pins`: reasons with
   the number of units that each keeps.
2. `groups.channel_groups` counts them from `ChannelUnits.pins`: one reason for each unit that must
   stay, the first that was found.
3. `units.units_of` takes that from the pins of the trace, and adds one where a unit would leave
   only a part of a slice.
4. `tracing.ChannelTracer.pin` adds a pin to the trace. Search for the words of the reason: they
   stand in a rule (`rules_*`), or at the end of the sweep. `collapsed`, `merge` and `pin_all` of
   the tracer pin on behalf of rules. An operator without a rule pins all that reaches it, and so
   does a rule that raises `Untraceable`.

Channels that are not pinned stay for other reasons: their layer is in no group (`unpruned`), the
options leave the group out (`Pruning._is_wanted`), a level must keep a multiple of channels
(`removal_order`), or the budget is met without them (`levels.LevelChooser`).
"""
