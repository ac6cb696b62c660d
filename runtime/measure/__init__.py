"""What is measured of whole models: outputs, run time, accuracy.

workload            the samples that a model is proven on
verify              RuntimeProver: what the manager asks of onnxruntime
promise             each fidelity held against measured drift
drift               how far an output moved
comparing           one session held against kept outputs
rounding_noise      how far outputs move when nothing but rounding changes
output_divergence   how far an output departs from another, as one number that adds up
accuracy            top-1, or the user's own metric
latency             models timed in turn
bench               latency of several models side by side
stopwatch           SessionStopwatch: what passes ask about run time
profile             where the time of a model goes, node by node
"""
