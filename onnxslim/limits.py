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

MOST_NODES: Final = 200_000
"""Nodes of a model with its local functions written out, where it has any.

Functions that call each other can stand for 2^40 nodes in a kilobyte, and the ONNX checker goes
through every call: 2^18 of them take it more than a minute. Models in use have some thousands.
"""

MOST_CALL_DEPTH: Final = 100
"""Local functions that call each other, one inside the other; onnx's own tools take no more."""

MOST_RUN_SECONDS: Final = 10.0
"""One run of a model on inputs that were made up, and one computation of a constant.

A loop of 2^62 turns fits into a kilobyte. Large models in use take a second or two on such inputs;
samples of the user may take as long as they do.
"""

MOST_RUN_BYTES: Final = 2 << 30
"""By which the process may grow in such a run; it is stopped before its next node.

Sizes may depend on those of the inputs, or on their values: 45 nodes that double a tensor fit into
a kilobyte.
"""

MOST_DRAWN_ENTRIES: Final = 1 << 25
"""Entries of all inputs together where their sizes are guessed: 128 MB of float32.

A batch of eight pictures of 1,024 x 1,024 has 25 million. A guess that takes every open axis for a
side of a picture would draw gigabytes, only for the model to refuse them.
"""

MOST_LIST_ENTRIES: Final = 1 << 20
"""Entries of a list of numbers that is an attribute of a node, but for a Constant's.

The long lists of `ai.onnx.ml` stay in the file. Others name axes, sizes or positions: a handful.
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

MOST_KEPT_BYTES: Final = 32 << 30
"""Of samples that a function, an iterable or a folder of pictures gives, in a temporary file.

They are read once and kept, so that each reading gives the same; a generator without an end would
fill the disk. The 50,000 pictures that ImageNet is judged on have 7.5 GB at 224 by 224.
"""
