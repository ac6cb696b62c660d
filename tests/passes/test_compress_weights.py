from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from layer_nets import (
    FORCE,
    REPRODUCERS,
    dense_net,
    net,
    node,
    normal,
    output_error,
    outputs,
    rewritten,
    runs,
    samples,
    whats,
    whys,
)

from onnxslim import cli
from onnxslim.analysis.layers import weight_layers
from onnxslim.codebook.nodes import codebook_nodes
from onnxslim.io.check import check_model
from onnxslim.io.model import Model
from onnxslim.lossy import allocation, allocation_search
from onnxslim.lossy.allocation import Offer
from onnxslim.lossy.allocation_search import AllocationSearch
from onnxslim.passes.compress_weights import CompressWeights
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.records import OutputKind
from onnxslim.report import StepReport
from onnxslim.services.calibration import Distance, OutputDistance
from support import parse

X = samples(400, 16)
FRESH = samples(400, 16, seed=0)[::-1] + 0.02 * samples(400, 16, seed=8)


Compressed = tuple[Model, list[StepReport]]
SPEC = "compress-weights:agreement=0.95"
OFFERED = {
    "KEPT_SHARES": (1.0, 0.7, 0.5, 0.3, 0.15, 0.05),
    "VALUES": (3, 8),
    "DENSE_VALUES": (2, 4, 16, 32),
}


@pytest.fixture(autouse=True, scope="module")
def _fewer_offers() -> Iterator[None]:
    """Allocations of coarse menus are made as those of fine ones, in a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name, values in OFFERED.items():
            patch.setattr(allocation, name, values)
        yield


@pytest.fixture(scope="module")
def plain(_fewer_offers: None) -> Compressed:
    """The classifier, compressed."""
    return compressed(classifier())


def classifier() -> onnx.ModelProto:
    return dense_net(16, 18, 8)


def regressor() -> onnx.ModelProto:
    """Outputs of three axes: no class scores."""
    nodes = [
        node("MatMul", ["x", "v"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "w"], "y")
    ]  # fmt: skip
    weights = {"v": normal(16, 24, scale=0.3), "w": normal(24, 10, scale=0.3)}
    return net(nodes, weights, ["N", 1, 16])


def compressed(
    source: onnx.ModelProto | Model,
    x: np.ndarray = X,
    spec: str = SPEC,
    **facts: object,
) -> Compressed:
    model = source if isinstance(source, Model) else Model.load(source)
    context = Context(calibration=runs(x), **facts)  # type: ignore[arg-type]
    return PassManager.parse(spec).run(model, context, policy=FORCE, reproducers=REPRODUCERS)


def agreement(source: onnx.ModelProto, model: Model, x: np.ndarray) -> float:
    ref, new = outputs(source, x)["y"], outputs(model, x)["y"]
    return float((ref.argmax(axis=-1) == new.argmax(axis=-1)).mean())


def sqnr_db(source: onnx.ModelProto, model: Model, x: np.ndarray) -> float:
    return float(-10 * np.log10(output_error(source, model, x)))


def plan(reports: list[StepReport]) -> str:
    (text,) = [what for what in whats(reports) if what.startswith("chose ")]
    return text.removeprefix("chose ")


def file_bytes(model: Model | onnx.ModelProto) -> int:
    return len(model.to_bytes() if isinstance(model, Model) else model.SerializeToString())


# ------------------------------------------------------------------- fires


def test_weights_are_pruned_and_clustered_as_the_plan_says(plain: Compressed) -> None:
    model, reports = plain
    check_model(model)
    assert len(list(codebook_nodes(model.graph))) == 2
    prune, cluster = parse_pipeline(plan(reports)).passes
    assert prune.name == "prune-weights"
    assert cluster.name == "cluster-weights"


def test_the_floor_on_agreement_holds_on_samples_held_back() -> None:
    source = classifier()
    model, _ = compressed(source, floors=Floors(min_agreement=0.98))
    # the candidate that held it was fitted without these samples; the model is fitted to all
    assert agreement(source, model, X[1::5]) >= 0.95
    assert agreement(source, model, FRESH) >= 0.94


def test_the_floor_on_sqnr_holds_on_samples_held_back_and_is_used_up() -> None:
    source, x = regressor(), X[:, None]
    model, _ = compressed(source, x, floors=Floors(min_sqnr_db=15))
    assert 12 < sqnr_db(source, model, x[1::5]) < 30


def test_the_floor_on_accuracy_holds() -> None:
    source = classifier()
    labels = outputs(source, FRESH)["y"].argmax(axis=1)

    def accuracy(model: Model) -> float:
        return float((outputs(model, FRESH)["y"].argmax(axis=1) == labels).mean())

    model, _ = compressed(source, accuracy=accuracy, floors=Floors(max_drop=3.0))
    assert 0.95 <= accuracy(model) < 1


def test_a_lower_floor_gives_a_smaller_file() -> None:
    source = classifier()
    sizes = [
        file_bytes(
            compressed(source, spec="compress-weights:count=onnx", floors=Floors(min_sqnr_db=db))[0]
        )
        for db in (5.0, 25.0)
    ]
    assert sizes[0] < sizes[1]


def test_without_a_floor_its_own_options_are_one() -> None:
    source = regressor()
    found = [
        sqnr_db(
            source, compressed(source, X[:, None], f"compress-weights:sqnr={db}")[0], X[:, None]
        )
        for db in (8, 25)
    ]
    assert found[0] < found[1]
    assert found[1] > 22


def test_a_floor_that_says_nothing_of_the_outputs_is_no_leave_to_destroy_them() -> None:
    """An agreement cannot be measured where no output is class scores."""
    source = regressor()
    model, _ = compressed(source, X[:, None], floors=Floors(min_agreement=0.9))
    assert sqnr_db(source, model, X[:, None]) > 15


# ------------------------------------------------------------------- the plan


def test_the_plan_run_by_itself_gives_the_same_bytes(plain: Compressed) -> None:
    model, reports = plain
    again, steps = rewritten(classifier(), X, plan(reports))
    assert again.to_bytes() == model.to_bytes()
    assert whats(steps) == [what for what in whats(reports) if not what.startswith("chose ")]


def test_the_plan_holds_its_other_options() -> None:
    source = classifier()
    model, reports = compressed(source, spec=f"{SPEC}:count=onnx:aim=own:sequential=false:skip=y")
    for step in parse_pipeline(plan(reports)).passes:
        assert (step.aim, step.sequential, step.skip) == ("own", False, ("y",))  # type: ignore[attr-defined]
    again, _ = rewritten(source, X, plan(reports))
    assert again.to_bytes() == model.to_bytes()


def test_the_result_is_the_same_every_time(plain: Compressed) -> None:
    model, reports = compressed(classifier())
    assert model.to_bytes() == plain[0].to_bytes()
    assert whats(reports) == whats(plain[1])


def test_names_of_all_kinds_are_spelled_so_that_the_plan_parses() -> None:
    names = ["/m/conv[0]/Conv:0", "a+b,c=d*?", 'it\'s "x"', "y"]
    offers = [
        Offer(0.5, 4, 1, 0),
        Offer(1.0, 8, 1, 0),
        Offer(1.0, None, 1, 0),
        Offer(2e-5, 3, 1, 0),
    ]
    made = CompressWeights(skip=("z*",))
    steps = made.explicit(dict(zip(names, offers, strict=True)))
    assert parse_pipeline(",".join(map(str, steps))).passes == steps
    prune, cluster = steps
    assert prune.ratio == 0
    assert cluster.skip == ("z*", 'it\'s "x"')
    assert prune.ratio_of[-1] == "y=0.9999"


def test_a_plan_for_awkward_names_hits_the_layers_it_means() -> None:
    source = classifier()
    for n in source.graph.node:
        for field in (n.input, n.output):
            for i, name in enumerate(field):
                field[i] = {"h0": "/a[0]/b*:0+=", "y": "y"}.get(name, name)
    model, reports = compressed(source)
    again, _ = rewritten(source, X, plan(reports))
    assert again.to_bytes() == model.to_bytes()
    assert len(list(codebook_nodes(model.graph))) == 2


def test_only_and_skip_choose_layers() -> None:
    model, _ = compressed(classifier(), spec=f"{SPEC}:only=h0")
    layers, _ = weight_layers(model.graph)
    assert [layer.name for layer in layers] == ["y"]
    np.testing.assert_array_equal(
        layers[0].holder.values, onnx.numpy_helper.to_array(classifier().graph.initializer[2])
    )


# ------------------------------------------------------------------- declines


def test_without_samples_it_says_what_to_give() -> None:
    model, reports = rewritten(classifier(), None, "compress-weights")
    assert whys(reports) == [
        "it needs calibration samples to measure what each layer tolerates: give --calib"
    ]
    assert model.to_bytes() == Model.load(classifier()).to_bytes()


def test_a_floor_that_nothing_holds_leaves_the_model_as_it_is() -> None:
    source = classifier()
    model, reports = compressed(source, floors=Floors(min_sqnr_db=400.0))
    assert whats(reports) == []
    assert any("held the floor" in why or "holds the floor" in why for why in whys(reports))
    assert model.to_bytes() == Model.load(source).to_bytes()


def test_a_model_without_layers_says_so() -> None:
    source = net([node("Relu", ["x"], "y")], {}, ["N", 16])
    _, reports = compressed(source)
    assert whats(reports) == []
    assert "it has no layer whose input can be observed" in whys(reports)


def test_layers_that_cannot_be_observed_are_left_alone() -> None:
    numbers = ", ".join(f"{v:.3f}" for v in normal(16 * 16, scale=0.1))
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (float[N, 16] x) => (float[N, 16] y)
        <int64 trips = {{2}}, bool go = {{1}}, float[16, 16] w = {{{numbers}}}>
        {{
            h = MatMul (x, w)
            y = Loop (trips, go, h) <body = b (int64 i, bool p, float[N, 16] s)
                    => (bool q, float[N, 16] t)
                <float[16, 16] v = {{{numbers}}}>
                {{ q = Identity (p) t = MatMul (s, v) }}>
        }}"""
    )
    model, _ = compressed(source, spec="compress-weights:agreement=0.9")
    (layer,) = weight_layers(model.graph)[0]
    assert layer.name == "t"
    assert len(np.unique(layer.holder.values)) > 100
    assert len(list(codebook_nodes(model.graph))) == 1


def test_a_candidate_that_misses_the_floor_once_made_on_all_samples_gives_way_to_the_next(
    plain: Compressed, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Model] = []

    def holds(self: object, model: Model) -> bool:
        judged.append(model)
        return len(judged) > 1

    monkeypatch.setattr(allocation_search, "_SLACK", 2.0)  # so that all trials are made
    monkeypatch.setattr(AllocationSearch, "holds", holds)
    model, _ = compressed(classifier())
    assert len(judged) == 2
    first, second = map(file_bytes, judged)
    assert file_bytes(model) == second
    assert first != second


def test_what_never_holds_once_made_on_all_samples_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: list[Model] = []

    def judging(
        self: AllocationSearch, model: Model, samples: object
    ) -> tuple[Distance, float | None]:
        judged.append(model)
        figures = OutputDistance(OutputKind.CLASSES, 3.0, 0.25, 0.25)
        return Distance(1.0, 0.25, 0.25, 3.0, {"y": figures}), None

    def holds(self: AllocationSearch, model: Model) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AllocationSearch, "_judged", judging)
            return real(self, model)

    real = AllocationSearch.holds
    monkeypatch.setattr(allocation_search, "_SLACK", 2.0)
    monkeypatch.setattr(AllocationSearch, "holds", holds)
    source = classifier()
    model, reports = compressed(source)
    assert 1 <= len(judged) <= 3
    assert model.to_bytes() == Model.load(source).to_bytes()
    told = f"no candidate made on all samples held the floor: the best of {len(judged)} had an"
    assert any(told in why and "0.25" in why for why in whys(reports))


def test_an_allocation_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[dict[str, Offer]] = []
    real = AllocationSearch._try

    def listening(self: AllocationSearch, limit: float, found: dict[str, Offer]) -> object:
        tried.append(found)
        return real(self, limit, found)

    monkeypatch.setattr(AllocationSearch, "_try", listening)
    monkeypatch.setattr(allocation_search, "_SLACK", 2.0)
    compressed(dense_net(16, 12))
    keys = [tuple(found.items()) for found in tried]
    assert len(keys) == len(set(keys)) <= 6


# ------------------------------------------------------------------- edges


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(dense_net(16, 3), id="few outputs"),
        pytest.param(dense_net(16, 40, 1), id="one output"),
        pytest.param(
            net(
                [node("MatMul", ["x", "w"], "y")], {"w": np.zeros((16, 40), np.float32)}, ["N", 16]
            ),
            id="weights all zero",
        ),
    ],
)
@pytest.mark.parametrize("x", [X * 0, X[:1], X[:7]], ids=["zeros", "one", "seven"])
def test_models_and_samples_at_the_edge_are_no_obstacle(
    source: onnx.ModelProto, x: np.ndarray
) -> None:
    model, reports = compressed(source, x)
    check_model(model)
    assert whats(reports) or whys(reports)
    assert np.isfinite(outputs(model, X)["y"]).all()


def test_convs_are_compressed() -> None:
    maps = samples(60, 4, 8, 8)
    nodes = [
        node("Conv", ["x", "v", "b"], "h", pads=[1, 1, 1, 1]),
        node("Relu", ["h"], "r"),
        node("Conv", ["r", "w"], "y", group=4),
    ]
    weights = {"v": normal(16, 4, 3, 3, scale=0.2), "b": normal(16), "w": normal(16, 4, 3, 3)}
    source = net(nodes, weights, ["N", 4, 8, 8])
    model, _ = compressed(source, maps, "compress-weights:sqnr=15")
    assert len(list(codebook_nodes(model.graph))) == 2
    assert sqnr_db(source, model, maps) > 13


# ------------------------------------------------------------------- the command


def test_through_the_command_with_a_floor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(dense_net(16, 200, 10), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    paths = [str(tmp_path / name) for name in ("model.onnx", "out.onnx", "x.npz")]
    code = cli.run(
        [*paths[:2], "--passes", "compress-weights:count=onnx", "--calib", paths[2],
         "--goal", "bytes", "--min-agreement", "0.95"]
    )  # fmt: skip
    assert code == 0, capsys.readouterr()
    source, out = onnx.load(paths[0]), Model.load(paths[1])
    assert agreement(source, out, X) >= 0.95
    assert (tmp_path / "out.onnx").stat().st_size < 0.5 * (tmp_path / "model.onnx").stat().st_size
