"""Attention, and the rotation of its queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator


def _by_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, heads · D) as (N, heads, L, D); what has heads already stays."""
    if x.dim() == 4:
        return x
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


@dataclass(frozen=True)
class _Masking:
    """Which keys a query sees: all attributes and inputs of Attention that say so.

    Attributes:
        is_causal: whether a query sees no later key.
        before, after: how many keys it sees in front and behind; -1: all.
    """

    is_causal: bool
    before: int
    after: int

    def bias(
        self, q: Tensor, k: Tensor, mask: Tensor | None, past: int, lengths: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores (..., L, S), 0 or -inf where `mask` adds nothing else.

        Args:
            q: queries (N, heads, L, D).
            k: keys (N, heads, S, D), those of the cache in front.
            mask: bool, or added to the scores.
            past: keys in the cache.
            lengths: number of keys in each sample (N); None: all.
        """
        keys = torch.arange(k.shape[2], device=q.device)
        at = torch.arange(q.shape[2], device=q.device)[:, None] + past  # place of each query
        rules = []
        if lengths is not None:
            lengths = lengths.to(q.device).reshape(-1, 1, 1, 1)
            rules.append(keys < lengths)
            at = at + lengths - q.shape[2]
        if self.is_causal:
            rules.append(keys <= at)
        if self.before >= 0:
            rules.append(at - keys <= self.before)
        if self.after >= 0:
            rules.append(keys - at <= self.after)
        total = _as_bias(reduce(torch.logical_and, rules), q) if rules else None
        if mask is None:
            return total
        mask = _as_bias(mask, q) if mask.dtype == torch.bool else mask
        mask = functional.pad(mask, (0, k.shape[2] - mask.shape[-1]), value=-math.inf)
        return mask if total is None else total + mask


def _as_bias(allowed: Tensor, like: Tensor) -> Tensor:
    zeros = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill(~allowed, -math.inf)


@operator("Attention", 23, 24, 25)
def _attention(form: NodeForm) -> Computation:
    masking = _Masking(
        bool(form.integer("is_causal")),
        form.integer("left_window_size", -1),
        form.integer("right_window_size", -1),
    )
    scoring = _Scoring(
        form.number("scale") if form.has("scale") else None,
        form.number("softcap"),
        form.integer("qk_matmul_output_mode") if form.gives(3) else None,
    )
    q_heads, kv_heads = form.integer("q_num_heads"), form.integer("kv_num_heads")

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        is_flat = q.dim() == 3
        q, k, v = _by_heads(q, q_heads), _by_heads(k, kv_heads), _by_heads(v, kv_heads)
        past = 0
        if past_key is not None and past_value is not None:
            past = past_key.shape[2]
            k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        present = (k, v)
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        y, scores = scoring.attend(q, k, v, masking.bias(q, k, mask, past, lengths))
        if is_flat:
            y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)
        return y, *present, scores

    return run


@dataclass(frozen=True)
class _Scoring:
    """How scores are made of queries and keys.

    Attributes:
        scale: of the scores; None: 1 / sqrt (D).
        softcap: bound that tanh puts on them; 0: none.
        mode: which scores are wanted: 0 products, 1 capped, 2 masked, 3 shares; None: none.
    """

    scale: float | None
    softcap: float
    mode: int | None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The result (N, heads, L, Dv), and the scores that are wanted."""
        if not self.softcap and self.mode is None:
            y = functional.scaled_dot_product_attention(q, k, v, bias, scale=self.scale)
            return y, None
        factor = 1 / math.sqrt(q.shape[-1]) if self.scale is None else self.scale
        products = (q * math.sqrt(factor)) @ (k * math.sqrt(factor)).transpose(-1, -2)
        capped = products
        if self.softcap:
            capped = self.softcap * torch.tanh(products / self.softcap)
        masked = capped if bias is None else capped + bias
        shares = torch.softmax(masked, -1)
        if bias is not None:  # a query that sees no key gets zeros
            shares = torch.where(torch.isneginf(bias).all(-1, keepdim=True), 0, shares)
        wanted = None if self.mode is None else (products, capped, masked, shares)[self.mode]
        return shares @ v, wanted


@operator("RotaryEmbedding", 23)
def _rotary_embedding(form: NodeForm) -> Computation:
    is_interleaved, heads = bool(form.integer("interleaved")), form.integer("num_heads")
    part = form.integer("rotary_embedding_dim")

    def run(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
        is_flat = x.dim() == 3
        # (N, L, heads, D)
        y = x.reshape(*x.shape[:2], heads, -1) if is_flat else x.transpose(1, 2)
        if positions is not None:
            cos, sin = cos[positions.long()], sin[positions.long()]
        size = part or y.shape[-1]
        turned, rest = y[..., :size], y[..., size:]
        found = rotated(turned, cos[..., None, :], sin[..., None, :], is_interleaved)
        y = torch.cat([found, rest], -1) if rest.shape[-1] else found
        return y.reshape(x.shape) if is_flat else y.transpose(1, 2)

    return run


def rotated(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool) -> Tensor:
    """`x` with pairs of its last axis turned: neighbours, or those half the axis apart."""
    cos, sin = cos[..., : x.shape[-1] // 2], sin[..., : x.shape[-1] // 2]
    if is_interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
    else:
        a, b = x.chunk(2, -1)
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    if is_interleaved:
        return torch.stack([real, imaginary], -1).flatten(-2)
    return torch.cat([real, imaginary], -1)
