"""Operators of onnxruntime's own that files hold which it, or its tools, have optimised.

Those on codes are in `quantization`, activations in `elementwise`.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.graph.ir import MICROSOFT_DOMAIN
from onnxslim.runtime.training.operators.attention import rotated
from onnxslim.runtime.training.operators.convolution import convolution
from onnxslim.runtime.training.operators.grids import GridLayout, dequantized
from onnxslim.runtime.training.operators.linear import product_of_matrices
from onnxslim.runtime.training.operators.quantization import dynamic_codes
from onnxslim.runtime.training.operators.recurrent import long_short_term_memory
from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator, plain

_NO_VERSION: Final = 0  # of operators that onnxruntime has in the domain of the standard


def _activation(form: NodeForm) -> Computation:
    """The activation that is fused into a node."""
    name = form.text("activation")
    first, second = (*(form.numbers("activation_params") or []), 0.0, 0.0)[:2]
    known: dict[str, Computation] = {
        "": lambda x: x,
        "Relu": torch.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "LeakyRelu": lambda x: functional.leaky_relu(x, first),
        "Clip": lambda x: torch.clamp(x, first, second),
        "HardSigmoid": lambda x: torch.clamp(first * x + second, 0.0, 1.0),
    }
    if name not in known:
        raise form.unsupported(f"no activation `{name}` is known")
    return known[name]


@operator("FusedConv", domain=MICROSOFT_DOMAIN)
def _fused_conv(form: NodeForm) -> Computation:
    conv, activation = convolution(form), _activation(form)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        y = conv(x, w, b)
        return activation(y if added is None else y + added)

    return run


@operator("FusedGemm", domain=MICROSOFT_DOMAIN)
def _fused_gemm(form: NodeForm) -> Computation:
    product, activation = product_of_matrices(form), _activation(form)
    return lambda a, b, c=None: activation(product(a, b, c))


@operator("FusedMatMul", domain=MICROSOFT_DOMAIN)
@operator("TransposeMatMul", domain=MICROSOFT_DOMAIN)
def _fused_mat_mul(form: NodeForm) -> Computation:
    alpha = form.number("alpha", 1.0)
    if form.integer("transBatchA") or form.integer("transBatchB"):
        raise form.unsupported("it moves the batch axis")
    flip_a, flip_b = form.integer("transA"), form.integer("transB")

    def run(a: Tensor, b: Tensor) -> Tensor:
        a = a.transpose(-1, -2) if flip_a and a.dim() > 1 else a
        b = b.transpose(-1, -2) if flip_b and b.dim() > 1 else b
        return alpha * (a @ b)

    return run


# ---------------------------------------------------------------------------- normalisation


def _root_mean_square(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(torch.mean(x * x, -1, keepdim=True) + epsilon) * scale


@operator("SimplifiedLayerNormalization", _NO_VERSION, 1)
def _simplified_layer_normalization(form: NodeForm) -> Computation:
    epsilon = form.number("epsilon", 1e-5)
    return lambda x, scale: _root_mean_square(x, scale, epsilon)


def _summed(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    total = x + skip
    return total if bias is None else total + bias


@operator("SkipLayerNormalization", domain=MICROSOFT_DOMAIN)
def _skip_layer_normalization(form: NodeForm) -> Computation:
    epsilon = form.number("epsilon", 1e-12)

    def run(
        x: Tensor,
        skip: Tensor,
        gamma: Tensor,
        beta: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        total = _summed(x, skip, bias)
        y = functional.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
        return y, None, None, total

    return run


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT_DOMAIN)
def _skip_simplified_layer_normalization(form: NodeForm) -> Computation:
    epsilon = form.number("epsilon", 1e-5)

    def run(
        x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        total = _summed(x, skip, bias)
        return _root_mean_square(total, gamma, epsilon), None, None, total

    return run


@operator("EmbedLayerNormalization", domain=MICROSOFT_DOMAIN)
def _embed_layer_normalization(form: NodeForm) -> Computation:
    epsilon = form.number("epsilon", 1e-12)

    def run(
        ids: Tensor,
        segments: Tensor | None,
        words: Tensor,
        positions: Tensor,
        kinds: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        mask: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        at = torch.arange(ids.shape[1], device=ids.device) if places is None else places.long()
        total = functional.embedding(ids.long(), words) + functional.embedding(at, positions)
        if segments is not None and kinds is not None:
            total = total + functional.embedding(segments.long(), kinds)
        y = functional.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
        return y, None if mask is None else mask.sum(1, dtype=torch.int32), total

    return run


# ---------------------------------------------------------------------------- attention


def _key_bias(mask: Tensor | None, filled: float, like: Tensor) -> Tensor | None:
    """What a mask of keys adds to the scores: (N, S), (N, L, S) of 0 and 1, or lengths (N)."""
    if mask is None:
        return None
    if mask.dim() == 1:
        raise ValueError("lengths of sequences as masks are not known")
    hidden = mask == 0
    bias = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    bias = bias.masked_fill(hidden, filled)
    shape = (len(bias), 1, 1, -1) if mask.dim() == 2 else (len(bias), -1, *bias.shape[-2:])
    return bias.reshape(shape)


def _heads(x: Tensor, heads: int) -> Tensor:
    if x.dim() == 4:
        return x
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _attend(
    form: NodeForm, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """(N, L, heads · D) of queries, keys and values (N, heads, L, D)."""
    scale = form.number("scale") or 1 / math.sqrt(q.shape[-1])
    added = _key_bias(mask, form.number("mask_filter_value", -10000.0), q)
    if bias is not None:
        added = bias if added is None else added + bias
    if form.integer("unidirectional"):
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        hidden = ~seen.tril(k.shape[2] - q.shape[2])
        causal = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device)
        causal = causal.masked_fill(hidden, -math.inf)
        added = causal if added is None else added + causal
    y = functional.scaled_dot_product_attention(q, k, v, added, scale=scale)
    return y.transpose(1, 2).flatten(2)


@operator("Attention", domain=MICROSOFT_DOMAIN)
def _attention(form: NodeForm) -> Computation:
    heads, sizes = form.integer("num_heads"), form.integers("qkv_hidden_sizes")
    if form.takes(4) or form.integer("do_rotary"):
        raise form.unsupported("it has a cache, or rotates its queries")

    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        past: None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        both = x @ weight if bias is None else x @ weight + bias
        q, k, v = both.split(sizes or [both.shape[-1] // 3] * 3, -1)
        return _attend(form, _heads(q, heads), _heads(k, heads), _heads(v, heads), mask, added)

    return run


@operator("MultiHeadAttention", domain=MICROSOFT_DOMAIN)
def _multi_head_attention(form: NodeForm) -> Computation:
    heads = form.integer("num_heads")
    if not form.takes(2) or form.takes(6):
        raise form.unsupported("its queries, keys and values are packed, or it has a cache")

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        added: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if bias is not None:
            sizes = [q.shape[-1], q.shape[-1], bias.numel() - 2 * q.shape[-1]]
            of_q, of_k, of_v = bias.split(sizes)
            q, k, v = q + of_q, k + of_k, v + of_v
        q, k, v = _heads(q, heads), _heads(k, heads), _heads(v, heads)
        return _attend(form, q, k, v, mask, added), k, v

    return run


@operator("RotaryEmbedding", domain=MICROSOFT_DOMAIN)
def _rotary_embedding(form: NodeForm) -> Computation:
    is_interleaved, part = bool(form.integer("interleaved")), form.integer("rotary_embedding_dim")
    heads = form.integer("num_heads")

    def run(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        size = part or 2 * cos.shape[-1]
        is_flat = x.dim() == 3
        count = heads or x.shape[-1] // size
        y = x.reshape(*x.shape[:2], count, -1) if is_flat else x.transpose(1, 2)
        at = positions.long()
        if at.numel() == 1:  # the place of the first row
            at = at.reshape(1, 1) + torch.arange(y.shape[1], device=y.device)
        turned = rotated(
            y[..., :size], cos[at][..., None, :], sin[at][..., None, :], is_interleaved
        )
        y = torch.cat([turned, y[..., size:]], -1)
        return y.reshape(x.shape) if is_flat else y.transpose(1, 2)

    return run


# ---------------------------------------------------------------------------- others


@operator("DynamicQuantizeLSTM", domain=MICROSOFT_DOMAIN)
def _dynamic_quantize_lstm(form: NodeForm) -> Computation:
    """Weights are codes, (directions, inputs, 4 · H); what they multiply gets codes as it comes."""
    layout, whole = GridLayout(0), GridLayout()
    lstm = long_short_term_memory(form, lambda x: dequantized(*dynamic_codes(x), whole))

    def floats(codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        """(directions, 4 · H, inputs) of codes with one scale, or one for each column."""
        wide = scale.reshape(codes.shape[0], 1, -1)
        zero = None if zero_point is None else zero_point.reshape(codes.shape[0], 1, -1)
        return dequantized(codes, wide, zero, layout).transpose(1, 2)

    def run(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None,
        lengths: Tensor | None,
        h: Tensor | None,
        c: Tensor | None,
        peepholes: Tensor | None,
        w_scale: Tensor,
        w_zero: Tensor | None,
        r_scale: Tensor,
        r_zero: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        weight, recurrence = floats(w, w_scale, w_zero), floats(r, r_scale, r_zero)
        return lstm(x, weight, recurrence, b, lengths, h, c, peepholes)

    return run


@operator("BiasSoftmax", domain=MICROSOFT_DOMAIN)
def _bias_softmax(form: NodeForm) -> Computation:
    axis = form.integer("axis", 1)

    def run(x: Tensor, bias: Tensor) -> Tensor:
        total = x + bias
        return torch.softmax(total.flatten(axis % x.dim()), -1).reshape(total.shape)

    return run


plain("Inverse", domain=MICROSOFT_DOMAIN)(torch.linalg.inv)
