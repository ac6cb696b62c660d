"""Floors as a user meets them: what is left out, what is said, and how to allow it."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command import Said
from layer_nets import net, node, normal, samples
from text_nets import texts, transformer

import onnxslim
from onnxslim import cli
from onnxslim.records import OutputKind

X = samples(64, 12)
PRUNE = "prune-weights:ratio=0.9"
CAPITALS = "NOT JUDGED ON REAL DATA"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=X)
    return tmp_path


def run(folder: Path, model: onnx.ModelProto, *options: str) -> int:
    onnx.save(model, folder / "m.onnx")
    always = ("--goal", "bytes", "--no-latency", "--report", str(folder / "r.json"))
    return cli.run([str(folder / "m.onnx"), str(folder / "o.onnx"), *always, *options])


def drift(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "r.json").read_text())["passes"][-1]["drift_original"]
    assert isinstance(found, dict)
    (figures,) = found.values()
    assert isinstance(figures, dict)
    return figures


def encoder() -> onnx.ModelProto:
    """Rows that end in a normalization."""
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("LayerNormalization", ["h", "g", "c"], "y", axis=-1),
    ]
    weights = {"w": normal(12, 64), "g": np.ones(64, np.float32), "c": np.zeros(64, np.float32)}
    return net(nodes, weights, ["N", 12])


def head(*, chooses: bool = False) -> onnx.ModelProto:
    """Class scores, or the class that is chosen."""
    nodes = [
        node("Gemm", ["x", "w", "b"], "h"),
        node("Relu", ["h"], "r"),
        node("Gemm", ["r", "v", "c"], "s"),
        node("Softmax", ["s"], "y", axis=-1),
    ]
    weights = {"w": normal(12, 256), "b": normal(256), "v": normal(256, 6), "c": normal(6)}
    model = net(nodes, weights, ["N", 12])
    if chooses:
        model.graph.node[-1].CopyFrom(node("ArgMax", ["s"], "y", axis=-1))
        chosen = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, ["N", 1])
        model.graph.output[0].CopyFrom(chosen)
    return model


# ------------------------------------------------------------------- a trained model, no data


@pytest.mark.parametrize(
    ("options", "code", "is_kept"),
    [((), 4, False), (("--no-floor",), 0, True), (("--min-sqnr", "3"), 0, True)],
)
def test_pruning_a_trained_model_without_data(
    tmp_path: Path, capsys: Said, options: tuple[str, ...], code: int, is_kept: bool
) -> None:
    target = tmp_path / "o.onnx"
    with as_file(files("onnxslim") / "assets" / "lenet5.onnx") as source:
        arguments = [str(source), str(target), "-q", "--no-latency", *options]
        assert cli.run([*arguments, "--passes", "prune-channels:ratio=0.5"]) == code
        assert (target.read_bytes() == source.read_bytes()) is not is_kept
    out, err = capsys.readouterr()
    assert out == ""
    last = err.rstrip().split("\n")[-1]
    if is_kept:
        assert last.startswith(f"onnxslim: {CAPITALS}: prune-channels:ratio=0.5. ")
        return
    assert CAPITALS not in err
    assert (
        "Left out or weakened, to hold the default floor: prune-channels:ratio=0.5: output `logits`"
        in last
    )
    assert "dB; the default floor is " in last
    assert "give --no-floor, or a floor of your own" in last


# ------------------------------------------------------------------- figures by kind


def test_embeddings_are_held_by_the_cosine_of_their_rows(folder: Path, capsys: Said) -> None:
    data = ("--passes", PRUNE, "--calib", str(folder / "x.npz"))
    assert run(folder, encoder(), *data) == 4
    said = capsys.readouterr()
    assert "output `y` would have a" in said.err
    assert "cosine of" in said.err
    assert "cosine of rows 0." in said.out
    assert "top-1" not in said.out
    figures = drift(folder)
    assert (figures["kind"], figures["agreement"]) == ("embedding", None)
    assert run(folder, encoder(), *data, "--min-cosine", "0.1") == 0  # no other floor is held then
    assert run(folder, encoder(), *data, "--min-row-cosine", "0.99") == 4
    assert "a row with a cosine of" in capsys.readouterr().err


def test_token_logits_are_held_by_their_divergence(folder: Path, capsys: Said) -> None:
    np.savez(folder / "t.npz", **texts(40)[0])
    data = ("--passes", "prune-weights:ratio=0.7", "--calib", str(folder / "t.npz"))
    model = transformer("tokens")
    assert run(folder, model, *data, "--max-kl", "0.001") == 4
    said = capsys.readouterr()
    assert "output `y` would have a mean divergence of" in said.err
    assert "nats (Kullback-Leibler); --max-kl is 0.001" in said.err
    assert "top-1 tokens agree for" in said.out
    assert "KL divergence" in said.out
    figures = drift(folder)
    assert figures["kind"] == "token-logits"
    assert 0.001 < float(str(figures["mean_kl"])) < float(str(figures["largest_kl"]))
    assert run(folder, model, *data, "--max-kl", "0.001", "--output-kind", "y=values") == 2
    assert "--output-kind NAME=token-logits" in capsys.readouterr().err


def test_padding_counts_in_no_figure(folder: Path) -> None:
    """The same texts, one by one without padding, and as one padded batch."""
    given, _ = texts(30)
    lengths = given["mask"].sum(axis=1)
    alone = [
        {name: given[name][number : number + 1, :length] for name in given}
        for number, length in enumerate(lengths)
    ]
    for pads in (False, True):
        options = ("--passes", "quantize-weights:bits=4", "--force", "--no-floor")
        assert run(folder, transformer("hidden", pads=pads), *options) == 0
        found = []
        for calibration in (alone, [given]):
            feeds = [{**one, "mask": one["mask"] == 0} if pads else one for one in calibration]
            comparison, *_ = onnxslim.compare_models(
                folder / "m.onnx", folder / "o.onnx", calibration=feeds, measure=False
            )
            found.append(comparison.original["y"])
        assert found[0].kind is OutputKind.HIDDEN_STATES
        for figure in ("mean_cosine", "least_cosine", "sqnr_db"):
            one, padded = (getattr(each, figure) for each in found)
            assert one == pytest.approx(padded, rel=1e-3)


def test_what_the_user_says_of_an_output_counts(folder: Path, capsys: Said) -> None:
    data = ("--passes", PRUNE, "--calib", str(folder / "x.npz"), "--output-kind", "y=values")
    assert run(folder, encoder(), *data) == 4
    assert "output `y` would have an SQNR of" in capsys.readouterr().err
    assert (drift(folder)["kind"], drift(folder)["mean_cosine"]) == ("values", None)


def test_integers_are_held_by_the_share_that_is_equal(folder: Path, capsys: Said) -> None:
    data = ("--passes", "prune-weights:ratio=0.98", "--calib", str(folder / "x.npz"))
    assert run(folder, head(chooses=True), *data) == 4
    assert "values of output `y` would agree for 0." in capsys.readouterr().err
    assert drift(folder)["kind"] == "discrete"
    assert run(folder, head(chooses=True), *data, "--min-agreement", "0") == 0


def test_classes_are_held_by_labels_where_there_are_some(folder: Path, capsys: Said) -> None:
    model = head()
    runner = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    labels = runner.run(None, {"x": X})[0].argmax(axis=1)
    np.savez(folder / "e.npz", x=X, label=labels)
    assert run(folder, model, "--passes", PRUNE, "--eval", str(folder / "e.npz")) == 4
    assert "points; the default floor is " in capsys.readouterr().err


def test_steps_that_cost_little_pass_the_default_floor_and_need_no_data(
    folder: Path, capsys: Said
) -> None:
    assert run(folder, head(), "--passes", "quantize-weights") == 0
    assert drift(folder)["kind"] == "classes"
    assert run(folder, head(), "--passes", "convert-fp16") == 0
    assert CAPITALS not in capsys.readouterr().err
    # what is lost with fewer bits, only data tell
    assert run(folder, head(), "--passes", "quantize-weights:bits=4", "--no-floor") == 0
    assert f"{CAPITALS}: quantize-weights:bits=4" in capsys.readouterr().err
    data = ("--passes", "quantize-weights:bits=4", "--calib", str(folder / "x.npz"))
    assert run(folder, head(), *data, "--no-floor") == 0
    assert CAPITALS not in capsys.readouterr().err
    # outputs that were not compared were not judged, whatever data there are
    assert run(folder, head(), *data, "--no-verify") == 0
    assert "The outputs were not compared" in capsys.readouterr().err


# ------------------------------------------------------------------- requests that say nothing


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--min-cosine", "0.9"), "--min-cosine is a floor for outputs that hold embedding"),
        (("--max-kl", "0.1"), "--max-kl is a floor for outputs that hold token-logits"),
        (("--no-floor", "--min-sqnr", "20"), "exclude each other"),
        (("--output-kind", "z=classes"), "names `z`, which is no output"),
        (("--output-kind", "y=logits"), "one of classes, embedding, hidden-states, "),
    ],
)
def test_floors_that_say_nothing_are_refused(
    folder: Path, capsys: Said, options: tuple[str, ...], part: str
) -> None:
    assert run(folder, head(), "--passes", PRUNE, *options) == 2
    assert part in capsys.readouterr().err
    assert not (folder / "o.onnx").exists()


def test_a_recipe_can_do_without_floors(folder: Path, capsys: Said) -> None:
    (folder / "r.toml").write_text(f'passes = "{PRUNE}"\nfloor = false\n')
    assert run(folder, encoder(), "--recipe", str(folder / "r.toml")) == 0
    (folder / "r.toml").write_text(f'passes = "{PRUNE}"\n')
    assert run(folder, encoder(), "--recipe", str(folder / "r.toml")) == 4
    assert "the default floor" in capsys.readouterr().err


def test_from_python(folder: Path) -> None:
    with pytest.raises(onnxslim.errors.FloorMissed, match="the default floor"):
        onnxslim.compress(encoder(), passes=PRUNE, measure=False)
    _, report = onnxslim.compress(encoder(), passes=PRUNE, measure=False, floors=None)
    assert report.unjudged == [PRUNE]
    kinds = {"y": "values"}
    with pytest.raises(onnxslim.errors.FloorMissed, match="dB; the default floor"):
        onnxslim.compress(encoder(), passes=PRUNE, measure=False, output_kinds=kinds)
