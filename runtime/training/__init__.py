"""Training: graphs as functions that torch differentiates; needs the extra `train`.

operators    the operators of ONNX as functions of torch
plan         the order in which nodes run
compiler     from nodes to functions
expanding    operators as the functions that ONNX defines them by
preparing    a graph made ready
torch_graph  an ONNX graph as a function of torch tensors
parametrisation  a stored weight while it is trained
projections  what floats become where a weight may not be any float
leaf_parametrisations  float constants
coded_parametrisations  weights that nodes compute from codes
trained_weights  all weights of a graph
objectives   the distance of outputs from those of a teacher
schedule     the learning rate
regularizer  groups of elements that shrink to zero
augmentation  changes of pictures that leave what they show
features     inner tensors that student and teacher share
training_set  samples with what teachers say of them
checkpoint   the state of a run in a file
effects      what channels of inner tensors do to the outputs
loop         one training run
trainer      what passes see of it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxslim.runtime.samples.extras import TRAINING, import_extra

if TYPE_CHECKING:
    from onnxslim.runtime.training.torch_graph import TorchGraph

__all__ = ["TorchGraph"]


def __getattr__(name: str) -> object:
    # torch is imported when a graph is to be trained, not before
    if name == "TorchGraph":
        import_extra(*TRAINING)
        from onnxslim.runtime.training.torch_graph import TorchGraph

        return TorchGraph
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`.")
