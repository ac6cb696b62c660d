"""Where a step makes the model worse, the rewrites to blame are found and the rest is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import net, node, normal

import onnxslim
from onnxslim.io.model import Model
from onnxslim.pipeline import registry
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.pipeline.salvage import MOST_TRIALS, Site, SiteSearch
from onnxslim.report import Latency, LatencyPair
from onnxslim.runtime.measure.verify import RuntimeProver

SITES = [Site(f"pass{n // 16}", f"y{n}", f"kind{n // 4}") for n in range(64)]


@settings(deadline=None, max_examples=100)
@given(st.sets(st.integers(0, 63), min_size=1, max_size=2))
def test_what_is_to_blame_is_found_and_hardly_more(guilty: set[int]) -> None:
    wanted = {SITES[n] for n in guilty}
    asked: list[int] = []

    def is_to_blame(sites: Sequence[Site]) -> bool:
        asked.append(len(sites))
        return bool(wanted & set(sites))

    found = SiteSearch(is_to_blame).to_blame(SITES)
    assert wanted <= set(found)
    assert len(asked) <= MOST_TRIALS
    if len(guilty) == 1:
        assert found == list(wanted)


def test_what_is_to_blame_only_together_is_left_out_together() -> None:
    whole = SITES[:16]
    search = SiteSearch(lambda sites: set(whole) <= set(sites))
    assert search.to_blame(SITES) == whole


def test_a_search_that_takes_long_ends_and_leaves_out_more() -> None:
    now = 0.0

    def slow(sites: Sequence[Site]) -> bool:
        nonlocal now
        now += 5
        return SITES[3] in sites

    search = SiteSearch(slow, seconds=22, clock=lambda: now)
    found = search.to_blame(SITES)
    assert now == 20
    assert search.is_cut_short
    assert SITES[3] in found
    assert 1 < len(found) < len(SITES)
    assert not SiteSearch(slow, clock=lambda: now).is_cut_short


# ------------------------------------------------------------------- in a run


def convs(count: int = 4) -> onnx.ModelProto:
    """Depthwise Convs, each with a factor that fuse-affine can take."""
    nodes, weights, last = [], {}, "x"
    for n in range(count):
        nodes += [
            node("Conv", [last, f"w{n}"], f"c{n}", group=8),
            node("Mul", [f"c{n}", f"s{n}"], f"m[{n}]"),
            node("Relu", [f"m[{n}]"], f"r{n}"),
        ]
        weights |= {f"w{n}": normal(8, 1, 3, 3, seed=n), f"s{n}": normal(1, 8, 1, 1, seed=9 + n)}
        last = f"r{n}"
    nodes.append(node("Identity", [last], "y"))
    return net(nodes, weights, ["N", 8, 32, 32])


def muls(model: Model) -> list[str]:
    return [item.outputs[0].name for item in model.graph.nodes if item.op == "Mul"]


@pytest.mark.parametrize("pipeline", ["simplify", "fuse-affine"])
def test_slower_rewrites_are_left_out_the_rest_is_kept_and_the_spelling_repeats_it(
    pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time(self: RuntimeProver, before: Model, after: Model) -> LatencyPair:
        # the factor behind the third Conv is better left where it is
        slow = ["m[2]" not in muls(model) for model in (before, after)]
        ms = [1.0 + 0.2 * is_slow for is_slow in slow]
        ratio = ms[0] / ms[1]
        a, b = (Latency(each, each, each, 9) for each in ms)
        return LatencyPair(a, b, ratio, ratio - 0.01, ratio + 0.01)

    monkeypatch.setattr(RuntimeProver, "time", time)
    source = convs()
    model, report = onnxslim.compress(source, tmp_path / "a.onnx", passes=pipeline)
    (step,) = report.steps
    assert muls(model) == ["m[2]"]
    assert "1 rewrite of fuse-affine" in str(step.why_partly)
    assert report.record is not None
    assert "skip=" in report.record.resolved
    monkeypatch.setattr(RuntimeProver, "time", lambda *models: None)
    onnxslim.compress(source, tmp_path / "b.onnx", passes=report.record.resolved)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


DIVISIBLE = [name for name in registry.names() if issubclass(registry.get(name), RewritePass)]


@pytest.mark.parametrize("name", DIVISIBLE)
def test_no_rewrite_is_made_at_a_site_that_is_left_alone(name: str) -> None:
    from tiny_models import TINY

    from support import CONTEXT

    owner = registry.get(name)
    fired = 0
    for make in TINY.values():
        model = Model.load(make())
        onnxslim.io.shapes.infer_shapes(model)
        result = owner(skip=("*",)).run(model.graph, CONTEXT)  # type: ignore[call-arg]
        walked = [change for change in result.changes if change.site is not None]
        assert walked == []
        fired += any("leaves it alone" in skip.why for skip in result.skips)
    assert fired


def test_a_skip_of_simplify_names_a_pass_or_one_of_its_rewrites() -> None:
    preset = registry.get("simplify")(skip=("fold-if", "fuse-affine=m*"))  # type: ignore[call-arg]
    members = {item.name: item for item in preset.members()}
    assert "fold-if" not in members
    assert members["fuse-affine"].skip == ("m*",)  # type: ignore[attr-defined]
    for wrong in ("fuse=m", "strip-metadata=m"):
        with pytest.raises(onnxslim.UsageError, match=r"names"):
            registry.get("simplify")(skip=(wrong,))  # type: ignore[call-arg]
