"""Random graphs lose channels, and stay what they were with those channels at zero."""

from __future__ import annotations

import numpy as np
import onnx
from channel_drawing import channel_nets
from channel_nets import assert_cut_is_mask, cut, follow, some_gone
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**16)
FAST = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@settings(FAST, max_examples=120)
@given(channel_nets(), SEEDS, st.sampled_from([0.2, 0.5, 0.9]))
def test_masking_channels_of_random_graphs_is_cutting_them(
    source: onnx.ModelProto, seed: int, share: float
) -> None:
    _, channels = follow(source)
    gone = some_gone(channels, np.random.default_rng(seed), share)
    event("something leaves" if gone.any() else "nothing leaves")
    assert_cut_is_mask(source, gone)


@settings(FAST, max_examples=30)
@given(channel_nets(), SEEDS)
def test_what_was_shrunk_can_be_followed_and_shrunk_again(
    source: onnx.ModelProto, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    once = cut(source, some_gone(follow(source)[1], rng, 0.3))
    assert_cut_is_mask(once, some_gone(follow(once)[1], rng, 0.5))
