"""Exits of encoders that classify: points between layers, heads on pooled states, who declines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said
from exit_nets import ExitStopwatch, injected, loaded, style
from layer_nets import net, node, normal, whats, whys
from text_nets import CLASSES, LENGTH, TOKENS, WIDTH, texts, transformer

from onnxslim import cli
from onnxslim.exits.heads import poolings
from onnxslim.exits.nested_ifs import BatchMode, Exit, append_exits
from onnxslim.exits.nested_ifs import with_exits as exits_in
from onnxslim.exits.operators import Head, Pooling, ScoreForm
from onnxslim.exits.points import ExitPoint, candidate_points, point_named
from onnxslim.graph.ir import walk_graphs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.runtime.session import open_session

EASY = "inject-exits:target=0.95"
X, LABELS = texts(800)
NEW, _ = texts(3000, seed=77)


def outputs(model: Model | onnx.ModelProto, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    source = model if isinstance(model, Model) else Model.load(model)
    with open_session(source, optimise=False, threads=1) as session:
        return dict(session.run(given))


def one_by_one(
    model: Model | onnx.ModelProto, given: dict[str, np.ndarray], name: str = "y"
) -> np.ndarray:
    source = model if isinstance(model, Model) else Model.load(model)
    with open_session(source, optimise=False, threads=1) as session:
        singly = ({key: a[k : k + 1] for key, a in given.items()} for k in range(len(given["ids"])))
        return np.concatenate([session.run(feeds)[name] for feeds in singly])


def points_of(model: Model) -> list[ExitPoint]:
    return candidate_points(model.graph, model.graph.outputs[0])


# ------------------------------------------------------------------- points and features


@pytest.mark.parametrize("pads", [False, True])
def test_a_mask_that_every_layer_reads_hides_no_point(pads: bool) -> None:
    found = points_of(loaded(transformer(pads=pads)))
    assert [point.tensor for point in found] == [
        *("l0.middle", "h1", "l1.middle", "h2", "l2.middle", "h3"),
    ]
    assert {point.mask and (point.mask.name, point.mask.left_out) for point in found} == {
        ("mask", int(pads))
    }
    assert [str(pooling) for pooling in poolings(found[0])] == [
        f"{WIDTH} features of the first position",
        f"{WIDTH} features, averaged over the mask",
    ]


def test_positions_behind_a_convolution_are_no_channels() -> None:
    """As in vision transformers: a map is flattened and turned before the first layer."""
    nodes = [
        node("Conv", ["x", "k"], "c", strides=[4, 4]),
        node("Reshape", ["c", "flat"], "f"),
        node("Transpose", ["f"], "t", perm=[0, 2, 1]),
        node("Relu", ["t"], "r"),
        node("MatMul", ["r", "w"], "m"),
        node("Gather", ["m", "first"], "g", axis=1),
        node("Gemm", ["g", "v", "b"], "y"),
    ]
    weights = {
        "k": normal(6, 3, 4, 4),
        "flat": np.array([0, 6, -1], np.int64),
        "w": normal(6, 5),
        "first": np.array(0, np.int64),
        "v": normal(5, 4),
        "b": normal(4),
    }
    graph = loaded(net(nodes, weights, ["N", 3, 8, 8])).graph
    found = point_named(graph, graph.outputs[0], "r")
    assert isinstance(found, ExitPoint)
    assert (found.is_sequence, found.channels) == (True, 6)


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
def test_features_are_the_first_row_or_the_mean_over_the_mask(pads: bool, is_first: bool) -> None:
    model = loaded(transformer(pads=pads))
    point = next(p for p in points_of(model) if p.tensor == "h1")
    pooling = Pooling(point, is_first=is_first, is_masked=not is_first)
    head = Head(pooling, normal(CLASSES, WIDTH), normal(CLASSES, seed=3))
    rw = Rewriter(model.graph)
    (name,) = append_exits(rw, "y", [Exit(head, 0.5)], ScoreForm.LOGITS)
    model.graph.outputs.append(next(t for t in model.graph.tensors().values() if t.name == "h1"))
    given = {"ids": NEW["ids"][:50], "mask": NEW["mask"][:50]}
    counts = given["mask"][:, :, None]
    found = outputs(model, {**given, "mask": given["mask"] == 0} if pads else given)
    rows = found["h1"][:, 0] if is_first else (found["h1"] * counts).sum(1) / counts.sum(1)
    assert found[name] == pytest.approx(rows @ head.weight.T + head.bias, abs=1e-4)


# ------------------------------------------------------------------- exits


def test_easy_texts_leave_and_the_network_is_agreed_with() -> None:
    def fed(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**given, "mask": given["mask"] == 0}

    source = transformer(length=LENGTH, pads=True)
    model, reports = injected(source, fed(X), f"{EASY}:report-exit=true", ExitStopwatch())
    assert "If" in {item.op for graph in walk_graphs(model.graph) for item in graph.nodes}
    answers, wanted = outputs(model, fed(NEW)), outputs(source, fed(NEW))["y"]
    assert (answers["y"].argmax(1) == wanted.argmax(1)).mean() >= 0.95
    taken = answers[model.graph.outputs[-1].name]
    assert 0.1 < (taken == 1).mean() < 1
    exits = sum(what.startswith("exit ") for what in whats(reports))
    assert any("features" in what for what in whats(reports))
    assert not any("leave as a whole" in why for why in whys(reports))  # a batch can be split
    # those that stay get the network's own answer, whatever else is in their batch
    stays = taken > exits
    assert stays.any()
    assert answers["y"][stays] == pytest.approx(wanted[stays], abs=1e-4)
    few = {name: array[stays][:20] for name, array in fed(NEW).items()}
    assert (one_by_one(model, few) == one_by_one(source, few)).all()
    # and what stands in padding changes no exit
    other = np.random.default_rng(1).integers(0, TOKENS, NEW["ids"].shape)
    moved = outputs(model, fed({**NEW, "ids": np.where(NEW["mask"], NEW["ids"], other)}))
    assert all((answers[name] == moved[name]).all() for name in answers)


def test_a_split_batch_takes_the_rows_of_the_mask_along() -> None:
    source = loaded(transformer(layers=3))
    found = {point.tensor: point for point in points_of(source)}
    exits = [
        Exit(
            Head(Pooling(found[name], is_masked=True), normal(CLASSES, WIDTH, seed=k), np.zeros(3)),
            level,
        )
        for k, (name, level) in enumerate((("h1", 0.7), ("h2", 0.8)))
    ]
    split, whole = (
        exits_in(source, "y", exits, style(batch=mode, report=True))
        for mode in (BatchMode.SPLIT, BatchMode.ALL)
    )
    some = {name: array[:60] for name, array in NEW.items()}
    together, number = outputs(split, some), split.graph.outputs[-1].name
    assert set(together[number]) == {1, 2, 3}
    assert (together[number] == one_by_one(whole, some, number)).all()
    assert together["y"] == pytest.approx(one_by_one(whole, some), abs=1e-4)


def test_a_mask_of_other_positions_is_not_averaged_over() -> None:
    """Pairs of positions are joined: the mask has a column for each position of the tokens."""
    model = transformer(length=LENGTH)
    start = next(k for k, item in enumerate(model.graph.node) if item.output[0] == "h1")
    halved = [
        node("Reshape", ["h1", "pairs"], "paired"),
        node("MatMul", ["paired", "joiner"], "short"),
    ]
    nodes = [
        *model.graph.node[: start + 1],
        *halved,
        node("Gather", ["short", "first"], "features", axis=1),
    ]
    nodes += [item for item in model.graph.node if item.output[0] in ("scores", "y")]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, array in (
        ("pairs", np.array([0, LENGTH // 2, 2 * WIDTH], np.int64)),
        ("joiner", normal(2 * WIDTH, WIDTH, scale=0.3)),
    ):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    result, reports = injected(model, X, "inject-exits:at=short:threshold=0.6")
    assert any("averaged" in what or "first position" in what for what in whats(reports))
    assert "over the mask" not in " ".join(whats(reports))
    assert outputs(result, NEW)["y"].shape == (3000, CLASSES)


# ------------------------------------------------------------------- who declines


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("mean", "`y` holds an embedding: all of its numbers are the result"),
        ("hidden", "`y` holds hidden states, of which the last layers change every number"),
        ("tokens", "`y` holds token logits: what follows reads what every layer made"),
    ],
)
def test_models_without_an_answer_decline_in_a_sentence(
    output: str, said: str, tmp_path: Path, capsys: Said
) -> None:
    np.savez(tmp_path / "x.npz", **texts(40)[0])
    onnx.save(transformer(output), tmp_path / "m.onnx")
    files = [str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")]
    data = ("--passes", "inject-exits", "--calib", str(tmp_path / "x.npz"), "--goal", "latency")
    cli.run([*files, *data, "--no-latency"])
    told = " ".join("".join(capsys.readouterr()).split())
    assert said in told
    assert ("if it holds class scores, name it: output=y" in told) == (output == "mean")
    assert cli.run(["exits", files[0], "--calib", str(tmp_path / "x.npz")]) == 3
    assert said in " ".join("".join(capsys.readouterr()).split())


def test_a_network_that_reads_its_tokens_again_declines() -> None:
    _, reports = injected(transformer("late"), X, EASY)
    assert "no tensor that all paths to `y` pass through" in whys(reports)[0]
