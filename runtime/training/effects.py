"""What the channels of inner tensors do to the outputs, by gradients of the network itself.

For a tensor x and a channel c, the mean over samples of (Σ x·∂L/∂x)², the sum over all positions of
the channel: the diagonal of the Fisher information of a factor on the channel, so half of it is the
second-order change of L as the channel leaves (LeCun, Denker, Solla 1990; Theis et al. 2018,
arXiv:1801.05787, eq. 8; Molchanov et al. 2019, eq. 8). No labels are needed: L is the logarithm of
the probability of a class that is drawn by the network's own scores, and for other outputs their
sum with normal random weights, over their standard deviation, which gives Gauss-Newton's diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from onnxslim.analysis.output_kinds import OutputKinds
from onnxslim.io.model import Model
from onnxslim.records import OutputKind
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.training.torch_graph import TorchGraph
from onnxslim.services.progress import Progress

_ROUNDING = 1e-3  # of the sum of probabilities
_SCORES = (OutputKind.CLASSES, OutputKind.TOKEN_LOGITS)


def channel_effects(
    model: Model,
    axes: Mapping[str, int],
    samples: Samples,
    kinds: OutputKinds,
    *,
    most: int,
    seed: int,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """The effects of all channels of inner tensors.

    Args:
        model: the network.
        axes: of the channels, by the name of the tensor.
        samples: of which the first are run.
        kinds: of the outputs.
        most: the largest number of samples.
        seed: of what is drawn.
        progress: what is being done.

    Returns:
        By name, (channels,); tensors that no gradient reaches are left out.

    Raises:
        ModelError: torch has no function for an operator.
    """
    graph = TorchGraph(model.graph, device=torch.device("cpu"))
    # inner tensors are part of what torch differentiates only where something before them is
    weights = {
        name: stored.float().requires_grad_()
        for name, stored in graph.weights.items()
        if stored.is_floating_point()
    }
    chance = torch.Generator().manual_seed(seed)
    total: dict[str, np.ndarray] = {}
    one_by_one = samples.one_by_one()
    count = most if one_by_one.count is None else min(most, one_by_one.count)
    with progress.step("asking gradients", count, "samples") as told:
        for number, sample in enumerate(one_by_one):
            if number >= count:
                break
            feeds = {name: torch.from_numpy(np.asarray(a)) for name, a in sample.feeds.items()}
            found = graph(feeds, weights, also=list(axes))
            loss = _drawn_loss([(found[name], kinds.get(name)) for name in graph.outputs], chance)
            for name, effect in _effects(loss, found, axes).items():
                total[name] = total.get(name, 0.0) + effect
            told.advance()
    return {name: effect / max(count, 1) for name, effect in total.items()}


def _effects(
    loss: Tensor, found: Mapping[str, Tensor], axes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """(Σ x·∂L/∂x)² of each channel, for one sample."""
    inner = {name: found[name] for name in axes if found[name].requires_grad}
    gradients = torch.autograd.grad(loss, list(inner.values()), allow_unused=True)
    effects = {}
    for (name, value), gradient in zip(inner.items(), gradients, strict=True):
        if gradient is not None:
            channels = (value * gradient).movedim(axes[name], 0).flatten(1).sum(1)
            effects[name] = channels.detach().double().square().numpy()
    return effects


def _drawn_loss(
    outputs: Sequence[tuple[Tensor, OutputKind | None]], chance: torch.Generator
) -> Tensor:
    """A random function of the outputs, whose squared gradient is the Fisher information."""
    parts = []
    for value, kind in outputs:
        if not value.requires_grad:
            continue
        if kind in _SCORES and value.shape[-1] > 1:
            scores = _logarithms(value.reshape(-1, value.shape[-1]))
            drawn = torch.multinomial(scores.detach().exp(), 1, generator=chance)
            parts.append(scores.gather(1, drawn).sum())
        else:
            spread = value.detach().std(correction=0).clamp_min(1e-12)
            weights = torch.randn(value.shape, generator=chance, dtype=value.dtype)
            parts.append((value * weights).sum() / spread)
    return torch.stack(parts).sum()


def _logarithms(rows: Tensor) -> Tensor:
    """Of the probabilities that rows are, or are scores of."""
    sums = rows.detach().sum(-1)
    if (rows.detach() >= 0).all() and (sums - 1).abs().max() < _ROUNDING:
        return rows.clamp_min(1e-12).log()
    return torch.log_softmax(rows, -1)
