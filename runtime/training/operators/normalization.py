"""Normalisations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator


def _by_channel(x: Tensor, values: Tensor) -> Tensor:
    """Values of channels, for axis 1 of `x`."""
    return values.reshape(-1, *[1] * (x.dim() - 2))


@operator("BatchNormalization", 7, 9, 14, 15)
def _batch_normalization(form: NodeForm) -> Computation:
    epsilon, momentum = form.number("epsilon", 1e-5), form.number("momentum", 0.9)
    if not form.is_training and not form.integer("training_mode"):

        def run(x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            # torch's own gives moving averages no gradient, and some inputs a wrong one
            factor = scale * torch.rsqrt(var + epsilon)
            return x * _by_channel(x, factor) + _by_channel(x, b - mean * factor)

        return run

    def train(
        x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.dim())]
        batch_var, batch_mean = torch.var_mean(x, axes, correction=0)
        factor = scale * torch.rsqrt(batch_var + epsilon)
        y = x * _by_channel(x, factor) + _by_channel(x, b - batch_mean * factor)
        kept = 1 - momentum
        new_mean = mean.detach() * momentum + batch_mean.detach() * kept
        return y, new_mean, var.detach() * momentum + batch_var.detach() * kept

    return train


@operator("InstanceNormalization", 6, 22)
def _instance_normalization(form: NodeForm) -> Computation:
    epsilon = form.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, b: Tensor) -> Tensor:
        return functional.group_norm(x, x.shape[1], scale, b, epsilon)

    return run


@operator("GroupNormalization", 21)
def _group_normalization(form: NodeForm) -> Computation:
    epsilon, groups = form.number("epsilon", 1e-5), form.integer("num_groups")
    return lambda x, scale, b: functional.group_norm(x, groups, scale, b, epsilon)


@operator("LayerNormalization", 0, 17)
def _layer_normalization(form: NodeForm) -> Computation:
    axis, epsilon = form.integer("axis", -1), form.number("epsilon", 1e-5)
    wants_statistics = form.gives(1) or form.gives(2)

    def run(x: Tensor, scale: Tensor, b: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        shape = x.shape[axis:]
        if not wants_statistics and scale.shape == shape and (b is None or b.shape == shape):
            return functional.layer_norm(x, shape, scale, b, epsilon)
        axes = tuple(range(axis % x.dim(), x.dim()))
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        inverse = torch.rsqrt(var + epsilon)
        y = (x - mean) * inverse * scale
        return (y if b is None else y + b), mean, inverse

    return run


@operator("RMSNormalization", 23)
def _rms_normalization(form: NodeForm) -> Computation:
    axis, epsilon = form.integer("axis", -1), form.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        axes = tuple(range(axis % x.dim(), x.dim()))
        return x * torch.rsqrt(torch.mean(x * x, axes, keepdim=True) + epsilon) * scale

    return run


@operator("LRN", 1, 13)
def _lrn(form: NodeForm) -> Computation:
    alpha, beta, bias = (
        form.number("alpha", 1e-4),
        form.number("beta", 0.75),
        form.number("bias", 1.0),
    )
    size = form.integer("size")

    def run(x: Tensor) -> Tensor:
        before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
        flat = (x * x).reshape(x.shape[0], 1, x.shape[1], -1)
        wide = functional.pad(flat, (0, 0, before, after))
        sums = functional.avg_pool2d(wide, (size, 1), 1) * size
        return x / (bias + alpha / size * sums.reshape(x.shape)) ** beta

    return run


@operator("MeanVarianceNormalization", 9, 13)
def _mean_variance_normalization(form: NodeForm) -> Computation:
    axes = form.integers("axes") or [0, 2, 3]

    def run(x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) / (torch.sqrt(var) + 1e-9)

    return run


@operator("Dropout", 7, 10)
def _dropout_without_training(form: NodeForm) -> Computation:
    """The mask told which values are zero."""
    return lambda x: (x, torch.zeros_like(x, dtype=torch.bool)) if form.gives(1) else x


@operator("Dropout", 12, 13, 22, is_random=True)
def _dropout(form: NodeForm) -> Computation:
    def run(
        x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        kept = torch.ones_like(x, dtype=torch.bool)
        share = 0.5 if ratio is None else float(ratio)
        if training is None or not bool(training) or not share:
            return x, kept
        kept = torch.rand_like(x) >= share
        return x * kept / (1 - share), kept

    return run
