"""Limits on what a file may ask of the machine: files come from strangers, and may be hostile.

What is above a limit is refused in a sentence, with exit code 3 for a model and 2 for samples.
Each limit is far above what the models have that people exchange.
"""

from __future__ import annotations

from typing import Final

MOST_TENSOR_BYTES: Final = 4 << 30
"""Of one tensor inside a graph whose size is known before the model runs.

onnxruntime computes constants when a session opens: a file of 100 bytes can ask for a terabyte.
The largest tensors of models in use (activations at high resolution, logits over a vocabulary)
have some hundreds of megabytes. Weights that lie in the file count as they lie.
"""

MOST_TENSOR_OF_FILE: Final = 16
"""Times the size of the file, where that is more than `MOST_TENSOR_BYTES`: a table of a large model
that is stored in 4 bits grows to eight times its bytes."""

MOST_NODES: Final = 2_000_000
"""Nodes of a model with its local functions written out.

Functions that call each other can stand for 2^40 nodes in a kilobyte. A model of 100,000 nodes,
ten times as large as those in use, is read and simplified in a minute.
"""

MOST_ROW_BYTES: Final = 1 << 30
"""Of one sample (a row of all arrays of an .npz together), or of a file of a folder of samples.

Compressed arrays can claim any size: they are unpacked a few rows at a time.
"""

MANY_INPUTS: Final = 1_000
"""Inputs of a model from which onnxruntime is not asked by name, which takes it the square."""

STARTING_BYTES: Final = 320 << 20
"""Memory that the libraries take before a model is read (Python, numpy, scipy, onnx, onnxruntime).

With less (`ulimit -v`), some of them end the process, or wait without end, while they are imported.
"""

BLAS_BYTES: Final = 80 << 20
"""Memory that the two libraries for linear algebra take at their first product: 32 MB each."""
