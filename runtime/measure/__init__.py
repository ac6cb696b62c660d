"""Measurements of whole models: outputs, run time, accuracy.

workload            the samples that models are verified and timed on
verify              RuntimeProver verifies the steps of a pipeline
promise             measured drift against the promise of a fidelity
drift               how far an output moved
row_cosines         how far the rows of an embedding turned
row_divergences     how far rows of scores are from those of the reference, and whether they agree
padding             which positions of a batch only fill it up, and do not count
sample_drift        how far each sample, and each layer, moved
comparing           one session against kept outputs
output_evidence     how much the outputs of the original prove
row_matching        the comparable part of two outputs of different sizes
rounding_noise      how far outputs move when nothing but rounding changes
kernel_choice       outputs that move because onnxruntime chose other kernels
steadiness          outputs that the original gives differently when it runs again
output_divergence   how far an output diverges from another, as one number that adds up
accuracy            top-1, or the metric of the user
latency             models timed in turn
bench               latency of several models side by side
stopwatch           SessionStopwatch answers what passes ask about run time
run_rows            how many samples one run may take
profile             run time of a model, kernel by kernel
trace               kernels of models as a Chrome trace
"""
