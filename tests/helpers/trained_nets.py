"""A small net as passes store it, trained for a few steps without the rest of a training run."""

from __future__ import annotations

import numpy as np
import torch
from layer_nets import conv_and_dense, samples

from onnxslim.api import compress
from onnxslim.constraints.dense import dense_twin
from onnxslim.constraints.read import read_constraints
from onnxslim.constraints.storing import store_values
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.runtime.training.parametrisation import Moment, Settings
from onnxslim.runtime.training.torch_graph import TorchGraph
from onnxslim.runtime.training.trained_weights import TrainedWeights
from onnxslim.services.training import CodeRounding, TrainingRequest

PLAIN = TrainingRequest()
LAYERS = conv_and_dense()
X = samples(32, 2, 6, 6)


def stored_by(passes: str) -> Model:
    if not passes:
        return Model.load(LAYERS)
    model, _ = compress(
        LAYERS, passes=passes, calibration={"x": X}, force=True, floors=None, measure=False
    )
    return model


def trained(
    model: Model,
    steps: int = 5,
    rate: float = 0.02,
    request: TrainingRequest = PLAIN,
) -> tuple[Model, np.ndarray]:
    """The model after some steps towards zero outputs, and what torch computes with it then."""
    constraints = read_constraints(model.graph)
    twin = dense_twin(model, constraints)
    weights = TrainedWeights(constraints, twin.names, settings=Settings(request=request))
    weights.settle(Moment(0.0))
    graph = TorchGraph(twin.model.graph, device=torch.device("cpu"))
    optimizer = torch.optim.Adam(weights.parameters, lr=rate)
    x = torch.from_numpy(X)

    def outputs() -> torch.Tensor:  # type: ignore[name-defined]
        known = {n: t for n, t in weights.tensors().items() if n in graph.weights}
        return graph({"x": x}, known)["y"]

    for number in range(steps):
        optimizer.zero_grad()
        outputs().square().mean().backward()
        optimizer.step()
        is_random = request.rounding is CodeRounding.STOCHASTIC
        chance = torch.Generator().manual_seed(number) if is_random else None
        weights.settle(Moment((number + 1) / steps, chance))
    weights.settle(Moment(float(steps > 0)))
    copy = model.clone()
    rw = Rewriter(copy.graph)
    store_values(rw, read_constraints(copy.graph), weights.store())
    rw.result()
    return copy, outputs().detach().numpy()
