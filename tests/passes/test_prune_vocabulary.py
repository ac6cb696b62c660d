from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from text_nets import texts, transformer

import onnxslim
from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.passes.prune_vocabulary import PruneVocabulary
from onnxslim.pipeline.execution import run_pass
from onnxslim.records import Fidelity, PassResult
from onnxslim.report import Report, StepReport
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
from support import CONTEXT, run

ROWS = 400  # of a table of which texts use the first 40
Arrays = Mapping[str, np.ndarray]


def net(output: str = "hidden", *, is_tied: bool = True) -> onnx.ModelProto:
    """A transformer whose table has `ROWS` rows; an untied head has a weight of its own."""
    model = transformer(output, layers=1)
    rng = np.random.default_rng(3)
    for stored in model.graph.initializer:
        if stored.name == "table":
            table = numpy_helper.to_array(stored)
            more = rng.normal(size=(ROWS - len(table), table.shape[1])).astype(np.float32)
            whole = np.concatenate([table, more])
            stored.CopyFrom(numpy_helper.from_array(whole, "table"))
    if output == "tokens":
        model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = ROWS
        if not is_tied:
            turn = next(
                node
                for node in model.graph.node
                if node.op_type == "Transpose" and node.input[0] == "table"
            )
            model.graph.node.remove(turn)
            own = np.ascontiguousarray(rng.normal(size=(whole.shape[1], ROWS)).astype(np.float32))
            model.graph.initializer.append(numpy_helper.from_array(own, "turned_table"))
    return model


def filled(text: str) -> onnx.ModelProto:
    """A model from text; tensors that are only declared get random values."""
    model = onnx.parser.parse_model(text.replace("<opset", "<ir_version: 8, opset"))
    rng = np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        values = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, info.name))
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def pruned(
    model: onnx.ModelProto, options: str = "", **more: object
) -> tuple[onnx.ModelProto, StepReport, Report]:
    settings: dict[str, object] = {"calibration": texts(20)[0], "measure": False, **more}
    made, report = onnxslim.compress(model, passes=f"prune-vocabulary{options}", **settings)
    return made.to_proto(), report.steps[0], report


def sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {item.name: list(item.dims) for item in model.graph.initializer}


def table_rows(model: onnx.ModelProto) -> int:
    looked_up = [node.input[0] for node in model.graph.node if node.op_type == "Gather"]
    return next(sizes(model)[name][0] for name in looked_up if len(sizes(model)[name]) == 2)


def declined(text: str, rewrite: PruneVocabulary, samples: Arrays) -> PassResult:
    model = Model.load(filled(text))
    infer_shapes(model)
    before = model.to_bytes()
    context = replace(CONTEXT, calibration=CalibrationRuns(samples), model=model)
    result = run_pass(rewrite, model, context)
    assert result.changes == ()
    assert model.to_bytes() == before
    return result


# ------------------------------------------------------------------------------ fires


@pytest.mark.parametrize("output", ["hidden", "classes", "late"])
def test_samples_keep_their_bits_and_the_ids_their_meaning(output: str) -> None:
    source, (given, _) = net(output), texts(20)
    made, step, report = pruned(source)
    assert step.fidelity is Fidelity.EXACT
    used = len(np.unique(given["ids"]))
    assert table_rows(made) == used + 1  # and the mean of the others
    saved = report.before.stats.file_bytes - report.after.stats.file_bytes
    assert saved > 0.9 * (4 * 16 * (ROWS - used - 1) - 4 * ROWS)
    for new, old in zip(run(made, given), run(source, given), strict=True):
        np.testing.assert_array_equal(new, old)


def test_ids_that_left_are_read_as_the_unknown_one_or_as_their_mean(tmp_path: Path) -> None:
    source, (given, _) = net(), texts(3)
    keep = tmp_path / "ids.txt"
    keep.write_text("\n".join(map(str, range(30))), "utf-8")
    table = numpy_helper.to_array(next(t for t in source.graph.initializer if t.name == "table"))
    others = {**given, "ids": np.full_like(given["ids"], 77)}
    for options, row in ((":unknown=5", table[5]), ("", table[30:].mean(0, dtype=np.float64))):
        made, step, _ = pruned(source, f":keep='{keep}'{options}", floors=None)
        assert step.fidelity is Fidelity.LOSSY  # samples hold ids from 30 to 39
        changed = onnx.ModelProto()
        changed.CopyFrom(source)
        stored = next(t for t in changed.graph.initializer if t.name == "table")
        stand_in = table.copy()
        stand_in[30:] = row
        stored.CopyFrom(numpy_helper.from_array(stand_in, "table"))
        np.testing.assert_allclose(run(made, others)[0], run(changed, others)[0], atol=1e-6)
        np.testing.assert_array_equal(run(made, given)[0], run(changed, given)[0])


def test_negative_ids_count_from_the_end_as_before() -> None:
    source, (given, _) = net(), texts(4)
    given["ids"][0, 1:3] = (-1, -ROWS)
    made, step, _ = pruned(source, calibration=given)
    assert step.fidelity is Fidelity.EXACT
    np.testing.assert_array_equal(run(made, given)[0], run(source, given)[0])


def test_a_second_run_on_fewer_texts_makes_one_map_of_two() -> None:
    source, (given, _) = net(), texts(20)
    first, _, _ = pruned(source, ":unknown=9")
    few = {name: array[:2] for name, array in given.items()}
    second, step, _ = pruned(first, ":unknown=9", calibration=few)
    assert step.changes
    assert [node.op_type for node in second.graph.node].count("Gather") == 2
    assert table_rows(second) == len(np.unique([*few["ids"].ravel(), 9]))
    np.testing.assert_array_equal(run(second, few)[0], run(source, few)[0])
    again, step, _ = pruned(second, ":unknown=9", calibration=few)
    assert not step.changes
    assert again == second


def test_a_body_looks_up_ids_of_the_graph_around_it() -> None:
    text = f"""<opset_import: ["" : 17]>
    g (int64[N, T] ids, bool c) => (float[N, T, 16] y) <float[{ROWS}, 16] table> {{
      a = Gather (table, ids)
      b = If (c) <then_branch = t () => (float[N, T, 16] p) {{ p = Gather (table, ids) }},
                  else_branch = e () => (float[N, T, 16] q) {{ q = Neg (a) }}>
      y = Add (a, b)
    }}"""
    source = filled(text)
    given = {"ids": np.arange(6).reshape(2, 3), "c": np.array(True)}
    made, step, _ = pruned(source, calibration=[given])
    assert step.fidelity is Fidelity.EXACT
    assert table_rows(made) == 7
    np.testing.assert_array_equal(run(made, given)[0], run(source, given)[0])


# ------------------------------------------------------------------------------ new ids


@pytest.mark.parametrize("is_tied", [True, False])
def test_new_ids_and_a_smaller_head_give_the_scores_of_kept_tokens(
    tmp_path: Path, is_tied: bool
) -> None:
    source, (given, _) = net("tokens", is_tied=is_tied), texts(20)
    output = tmp_path / "small.onnx"
    _, step, _ = pruned(source, ":change-signature=true:unknown=9", output=output)
    assert step.fidelity is Fidelity.CLOSE
    assert any("takes new ids" in note for note in step.notes)
    kept = np.unique([*given["ids"].ravel(), 9])
    made = onnx.load(output)
    assert table_rows(made) == len(kept)
    assert made.graph.output[0].type.tensor_type.shape.dim[2].dim_value == len(kept)
    written = json.loads((tmp_path / "small.vocabulary.json").read_text("utf-8"))
    new_ids = np.array(written["new_ids"])
    assert written["input"] == "ids"
    assert new_ids[kept].tolist() == list(range(len(kept)))
    assert set(np.delete(new_ids, kept)) == {new_ids[9]}
    (found,) = run(made, {**given, "ids": new_ids[given["ids"]]})
    np.testing.assert_allclose(found, run(source, given)[0][..., kept], atol=1e-5)


def test_scores_with_a_bias_that_are_scaled_lose_their_entries_too() -> None:
    source = filled(f"""<opset_import: ["" : 17]>
    g (int64[N, T] ids) => (float[N, T, {ROWS}] y)
    <float[{ROWS}, 16] table, float[16, {ROWS}] w, float[{ROWS}] b, float two = {{2}}> {{
      x = Gather (table, ids) s = MatMul (x, w) t = Add (b, s) y = Div (t, two)
    }}""")
    given = {"ids": np.array([[3, 7, 11]])}
    made, step, _ = pruned(source, ":change-signature=true:unknown=3", calibration=given)
    assert len(step.changes) == 2
    assert sorted(sizes(made).values()) == [[], [3], [3, 16], [16, 3]]
    (found,) = run(made, {"ids": np.array([[0, 1, 2]])})
    np.testing.assert_allclose(found, run(source, given)[0][..., [3, 7, 11]], atol=1e-5)


def test_later_steps_and_samples_go_by_the_old_ids() -> None:
    source, (given, _) = net("tokens"), texts(20)
    made, report = onnxslim.compress(
        source,
        passes="prune-vocabulary:change-signature=true:unknown=9,simplify,quantize-weights:bits=8",
        calibration=given,
        measure=False,
        force=True,
        floors=None,
    )
    assert [bool(step.changes) for step in report.steps][0::2] == [True, True]
    assert report.steps[2].comparison is not None
    assert made.graph.inputs[0].renumbered is not None


# ------------------------------------------------------------------------------ declines


def test_a_tied_head_keeps_the_table_and_an_untied_one_stays_whole() -> None:
    _, step, _ = pruned(net("tokens"))
    assert not step.changes
    assert "read by `turned_table` as well" in step.skips[0].why
    made, step, _ = pruned(net("tokens", is_tied=False))
    assert step.fidelity is Fidelity.EXACT
    assert sizes(made)["turned_table"] == [16, ROWS]
    assert any("head stays whole" in skip.why for skip in step.skips)


PLAIN = f'<opset_import: ["" : 17]> g (int64[N, T] ids) => (float[N, T, 2] y) <float[{ROWS}, 2] t'


@pytest.mark.parametrize(
    ("text", "rewrite", "why"),
    [
        (
            f"{PLAIN}, int64 pad = {{0}}> {{ e = Equal (ids, pad) f = Cast <to = 1> (e) "
            "g = ReduceSum (f) r = Gather (t, ids) y = Add (r, g) }",
            PruneVocabulary(change_signature=True, unknown=0),
            "`e` reads the ids of `ids` as they are",
        ),
        (
            f"{PLAIN}> {{ y = Gather (t, ids) }}",
            PruneVocabulary(change_signature=True),
            "need one for all tokens that leave",
        ),
        (
            f"{PLAIN}> {{ y = Gather (t, ids) }}",
            PruneVocabulary(input_="words"),
            "no constant table is indexed by `words`; inputs with one: `ids`",
        ),
        (
            f"{PLAIN}> {{ r = Gather (t, ids) s = ReduceMax <keepdims = 0> (t) y = Add (r, s) }}",
            PruneVocabulary(),
            "the table `t` is read by `s` as well",
        ),
        (
            '<opset_import: ["" : 17]> g (int64[N, T] ids) => (float[N, T, 2] y) '
            "<float[3, 2] t> { y = Gather (t, ids) }",
            PruneVocabulary(),
            "saves no more than the map",
        ),
        (
            '<opset_import: ["" : 17]> g (int64[N, T] ids, float[9, 2] t) => (float[N, T, 2] y) '
            "{ y = Gather (t, ids) }",
            PruneVocabulary(),
            "no input holds ids of rows of a constant table",
        ),
    ],
)
def test_what_stays_and_why(text: str, rewrite: PruneVocabulary, why: str) -> None:
    samples = {"ids": np.array([[0, 1]])}
    if "9, 2] t)" in text:
        samples["t"] = np.zeros((1, 9, 2), np.float32)
    result = declined(text, rewrite, samples)
    assert any(why in skip.why for skip in result.skips), result.skips


def test_scores_that_are_read_again_keep_the_head() -> None:
    source = net("tokens", is_tied=False)
    source.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 1
    last = source.graph.node[-1]
    last.output[0] = "scores"
    source.graph.node.append(
        onnx.helper.make_node("ReduceMax", ["scores"], ["y"], axes=[2], keepdims=1)
    )
    made, step, _ = pruned(source, ":change-signature=true:unknown=9")
    assert step.fidelity is Fidelity.EXACT
    assert any("scores `scores` are read by `y`" in skip.why for skip in step.skips)
    assert sizes(made)["turned_table"] == [16, ROWS]


# ------------------------------------------------------------------------------ files


def tokenizer_file(folder: Path) -> Path:
    words = {f"w{i}": i for i in range(ROWS - 1)} | {"[UNK]": ROWS - 1}
    content = {"model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": words}}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_a_file_of_tokens_is_read_by_the_tokenizer(tmp_path: Path) -> None:
    """No samples are needed; the unknown token stays, and a smaller tokenizer lies beside."""
    keep = tmp_path / "words.txt"
    keep.write_text("w3\n\nw12\n", "utf-8")
    options = f":keep='{keep}':tokenizer='{tokenizer_file(tmp_path)}':change-signature=true"
    output = tmp_path / "small.onnx"
    made, step, _ = pruned(net(), options, calibration=None, floors=None, output=output)
    assert any("made-up ids" in note for note in step.notes)
    assert step.fidelity is Fidelity.LOSSY
    assert table_rows(made) == 3
    small = json.loads((tmp_path / "small.tokenizer.json").read_text("utf-8"))
    assert small["model"]["vocab"] == {"w3": 0, "w12": 1, "[UNK]": 2}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("small")) == [
        "small.onnx",
        "small.tokenizer.json",
        "small.vocabulary.json",
    ]


@pytest.mark.parametrize(
    ("lines", "has_tokenizer", "why"),
    [
        ("1\n400", False, "Line 2 of .* is id 400, and the table has 400 rows"),
        ("1\nw2", False, "Line 1 of .* is the token '1', and no tokenizer tells its id"),
        ("w1\nw2\nx", True, "Line 3 of .* is 'x', which is no token of"),
        ("\n", False, "lists no token"),
        (None, False, "cannot be read as text"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, lines: str | None, has_tokenizer: bool, why: str
) -> None:
    keep = tmp_path / "keep.txt"
    if lines is not None:
        keep.write_text(lines, "utf-8")
    options = f":tokenizer='{tokenizer_file(tmp_path)}'" if has_tokenizer else ""
    with pytest.raises(UsageError, match=why):
        pruned(net(), f":keep='{keep}'{options}", calibration=None)


def test_nothing_to_keep_and_no_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="needs `keep`"):
        PruneVocabulary(keep=())
    with pytest.raises(UsageError, match="needs calibration samples to see which ids texts hold"):
        pruned(net(), calibration=None)
