"""The pass `finetune`: a lossy step is mended, what the graph obeys is kept, floors judge both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layer_nets import dense_net, samples

from onnxslim.api import compress
from onnxslim.constraints.read import read_constraints
from onnxslim.errors import FloorMissed, UsageError
from onnxslim.io.model import Model
from onnxslim.lossy.allocation import Offer
from onnxslim.passes.compress_weights import CompressWeights
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.report import Report
from support import parse

pytest.importorskip("torch", reason="training needs the extra `train`")

SOURCE = dense_net(24, 32, 4)
X = samples(200, 24)
TRAIN = "finetune:epochs=20:learning-rate=0.01"


def run(passes: str, source: object = SOURCE, **options: object) -> tuple[Model, Report]:
    given: dict[str, object] = {
        "calibration": {"x": X},
        "output_kinds": {"y": "values"},
        "measure": False,
        "threads": 1,
    }
    return compress(source, passes=passes, **given | options)  # type: ignore[arg-type]


# ----------------------------------------------------------------- fires


def test_outputs_come_nearer_and_nodes_and_bytes_stay() -> None:
    before, first = run("cluster-weights:bits=1", floors=None)
    after, second = run(f"cluster-weights:bits=1,{TRAIN}", floors=None)
    drifts = [report.steps[-1].comparison.original["y"] for report in (first, second)]  # type: ignore[union-attr]
    assert drifts[1].rel_l2 < 0.98 * drifts[0].rel_l2
    assert [n.op for n in after.graph.nodes] == [n.op for n in before.graph.nodes]
    assert after.file_bytes() == before.file_bytes()
    kinds = [[type(x) for x in read_constraints(m.graph).weights] for m in (before, after)]
    assert kinds[0] == kinds[1]
    notes = [note for part in second.steps[-1].parts for note in part.notes]
    assert any("on 40 samples held back, by 100 steps" in note for note in notes)


def test_pruned_weights_keep_their_zeros_and_their_sparse_form() -> None:
    before, _ = run("prune-weights:ratio=0.8", floors=None, force=True)
    after, _ = run(f"prune-weights:ratio=0.8,{TRAIN}", floors=None, force=True)
    for one, other in zip(
        read_constraints(before.graph).leaves(), read_constraints(after.graph).leaves(), strict=True
    ):
        assert type(one.holder.stored) is type(other.holder.stored)
        kept = one.holder.values != 0
        assert not other.holder.values[~kept].any() or kept.all()


def test_two_runs_write_the_same_bytes() -> None:
    models = [run(f"cluster-weights:bits=1,{TRAIN}", floors=None)[0] for _ in range(2)]
    assert models[0].to_bytes() == models[1].to_bytes()


def test_a_teacher_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    Model.load(SOURCE).save(path)
    small, _ = run("cluster-weights:bits=1", floors=None)
    step = f"finetune:epochs=20:learning-rate=0.01:teacher='{path}'"
    mended, report = compress(
        small, passes=step, calibration={"x": X}, measure=False, threads=1, floors=None
    )
    assert report.steps[0].committed
    assert mended.file_bytes() == small.file_bytes()


def test_codes_of_tables_move_where_that_is_asked_for() -> None:
    step = "binarize-weights"
    before, _ = run(step, floors=None)
    plain, moved = (run(f"{step},{TRAIN}{word}", floors=None) for word in ("", ":codes=move"))
    codes = [_codes(model) for model in (before, plain[0], moved[0])]
    assert codes[0] == codes[1]
    assert codes[0] != codes[2]
    assert moved[0].file_bytes() == before.file_bytes()
    assert moved[1].steps[-1].committed


def test_a_net_that_reads_signs_comes_nearer() -> None:
    source = dense_net(24, 32, 32, 4)
    step = "binarize-weights:activations=sign"
    training = "finetune=20:training='learning-rate=0.01'"
    errors = []
    for passes in (step, f"{step}:{training}"):
        model, report = run(passes, source, floors=None)
        (last,) = report.steps
        assert last.committed
        assert last.comparison is not None
        errors.append(last.comparison.original["y"].rel_l2)
        assert [n.op for n in model.graph.nodes].count("Sign") == 2
    assert errors[1] < 0.95 * errors[0]


def _codes(model: Model) -> list[bytes]:
    tensors = [tensor for n in model.graph.nodes for tensor in n.inputs]
    return [t.values.tobytes() for t in tensors if getattr(t, "dtype", None) == np.uint8]


def test_channels_that_a_regularizer_brought_to_zero_cost_nothing() -> None:
    shrink = "finetune:regularizer=group-lasso:epochs=20:decay=1.2"
    model, report = run(shrink, floors=None)
    assert report.steps[0].committed
    (weight,) = (x.holder.values for x in read_constraints(model.graph).leaves() if x.name == "w0")
    dead = int((weight == 0).all(axis=0).sum())
    assert 8 <= dead < 32
    kept = -8 * ((dead - 32) // 8)  # widths are multiples of 8
    ratio = 1 - kept / 32
    errors = []
    for source in (Model.load(SOURCE), model):
        pruned, report = compress(
            source,
            passes=f"prune-channels:ratio={ratio}",
            calibration={"x": X},
            output_kinds={"y": "values"},
            measure=False,
            floors=None,
        )
        first = next(n for n in pruned.graph.nodes if n.op in ("Gemm", "MatMul"))
        assert kept in first.inputs[1].shape
        found = report.steps[-1].comparison
        assert found is not None
        errors.append(found.original["y"].rel_l2)
    assert errors[1] < 0.2 * errors[0]


# ----------------------------------------------------------------- floors


def sqnr(passes: str) -> float:
    report = run(passes, floors=None)[1]
    found = report.steps[-1].comparison
    assert found is not None
    return found.original["y"].sqnr_db


def test_a_step_below_the_floor_is_kept_where_training_brings_it_back() -> None:
    step = "cluster-weights:bits=1"
    between = (sqnr(step) + sqnr(f"{step},{TRAIN}")) / 2
    with pytest.raises(FloorMissed):
        run(step, floors={"min-sqnr": between})
    _, report = run(f"{step},{TRAIN}", floors={"min-sqnr": between})
    assert [item.committed for item in report.steps] == [True, True]


def test_what_training_does_not_bring_back_is_judged_without_it() -> None:
    first, second = "cluster-weights:bits=6:only=w0", "cluster-weights:bits=1:only=w1"
    least = sqnr(first) - 1
    with pytest.raises(FloorMissed) as caught:
        run(f"{first},{second},finetune:epochs=0.2:learning-rate=1e-6", floors={"min-sqnr": least})
    report = caught.value.report
    assert isinstance(report, Report)
    assert [item.committed for item in report.steps] == [True, False, False]


# ----------------------------------------------------------------- between steps of a pass

OPTIONS = "finetune=30:training='learning-rate=0.01'"


def test_a_pass_that_trains_between_its_steps_is_one_step() -> None:
    _, plain = run("prune-weights:ratio=0.9:criterion=magnitude", floors=None, force=True)
    step = f"prune-weights:ratio=0.9:criterion=magnitude:steps=3:{OPTIONS}"
    model, report = run(step, floors=None, force=True)
    assert len(report.steps) == 1
    found = report.steps[0]
    drifts = [r.steps[0].comparison.original["y"] for r in (plain, report)]  # type: ignore[union-attr]
    assert drifts[1].rel_l2 < 0.9 * drifts[0].rel_l2
    assert sum("samples held back" in note for note in found.parts[0].notes) == 3
    weights = [item.holder.values for item in read_constraints(model.graph).leaves()]
    zeros = [np.count_nonzero(w == 0) / w.size for w in weights if w.ndim == 2]
    assert zeros == pytest.approx([0.9, 0.9], abs=0.01)


def widths(model: Model) -> list[int]:
    shapes = [item.holder.shape for item in read_constraints(model.graph).leaves()]
    return [shape[1] for shape in shapes if len(shape) == 2]


def test_channels_leave_in_steps_with_training_between() -> None:
    step = "prune-channels:ratio=0.75:reconstruct=false"
    closed, plain = run(step, floors=None)
    model, report = run(f"{step}:steps=2:{OPTIONS}", floors=None)
    drifts = [r.steps[0].comparison.original["y"].rel_l2 for r in (plain, report)]  # type: ignore[union-attr]
    assert drifts[1] < drifts[0]
    assert sum(widths(model)) == sum(widths(closed))


def test_a_step_with_training_is_held_to_the_floor_as_a_whole() -> None:
    with pytest.raises(FloorMissed):
        run(f"cluster-weights:bits=1:{OPTIONS}", floors={"min-sqnr": 90})
    least = sqnr("cluster-weights:bits=1") + 0.1
    _, report = run(f"cluster-weights:bits=1:{OPTIONS}", floors={"min-sqnr": least})
    assert report.steps[0].committed


def test_an_allocation_is_searched_with_training_and_spelled_out() -> None:
    options = {"floors": {"min-sqnr": 12.0}, "force": True}
    model, report = run("compress-weights:finetune=6:training='learning-rate=0.01'", **options)
    (step,) = report.steps
    assert step.committed
    chosen = step.resolved or ""
    assert "finetune=2.0" in chosen
    assert "biases=16" in chosen
    assert model.file_bytes() < Model.load(SOURCE).file_bytes()
    again, _ = run(f"resolved,{chosen}", floors=None, force=True)
    assert again.to_bytes() == model.to_bytes()


def test_zeros_of_an_allocation_are_trained_in_three_turns_then_values() -> None:
    layers = {"h0": Offer(0.1, 4, 0, 0), "y": Offer(1.0, 8, 0, 0)}
    (searched,) = parse_pipeline("compress-weights:finetune=true").passes
    assert isinstance(searched, CompressWeights)
    assert [str(step) for step in searched.explicit(layers)] == [
        "prune-weights:finetune=2.0:ratio=0.0:ratio-of='h0=0.9000':steps=3",
        "cluster-weights:finetune=1.0:values-of='h0=4'+'y=8':biases=16",
    ]


def test_a_lossless_step_in_between_leaves_the_teacher() -> None:
    plain, _ = run("cluster-weights:bits=1,simplify", floors=None)
    mended, report = run(f"cluster-weights:bits=1,simplify,{TRAIN}", floors=None)
    assert report.steps[-1].committed
    assert plain.to_bytes() != mended.to_bytes()


# ----------------------------------------------------------------- declines


def skips(report: Report) -> list[str]:
    return [skip.why for step in report.steps for skip in step.skips]


def test_a_model_that_is_its_own_teacher_learns_nothing() -> None:
    model, report = run(TRAIN)
    assert skips(report) == ["the model is its own teacher: no lossy step came before"]
    assert model.to_bytes() == Model.load(SOURCE).to_bytes()


def test_epochs_that_bring_nothing_are_told() -> None:
    _, report = run("cluster-weights:bits=3,finetune:learning-rate=10:epochs=1", floors=None)
    assert "brought nothing on 40 samples held back" in skips(report)[-1]
    assert [step.committed for step in report.steps] == [True, True]


@pytest.mark.parametrize("frozen", ["y", "w1"])
def test_layers_that_are_frozen_stay(frozen: str) -> None:
    model, _ = run(f"cluster-weights:bits=1,{TRAIN}:freeze={frozen}", floors=None)
    plain, _ = run("cluster-weights:bits=1", floors=None)
    first, second = (
        {item.name: item.holder.values for item in read_constraints(each.graph).leaves()}
        for each in (model, plain)
    )
    same = {name for name, values in first.items() if np.array_equal(values, second[name])}
    assert same == ({"w1.table", "b1_1"} if frozen == "y" else {"w1.table"})


def test_samples_to_train_on_may_be_others() -> None:
    few = {"x": X[:10]}
    _, report = run(f"cluster-weights:bits=1,{TRAIN}", calibration=few, train={"x": X}, floors=None)
    notes = [note for part in report.steps[-1].parts for note in part.notes]
    assert any("on 40 samples held back" in note for note in notes)
    assert report.verified_on == "calibration: 10 samples"
    assert set(report.record.data_sha256) == {"calib", "train"}  # type: ignore[union-attr]


def test_samples_to_train_on_serve_for_all_where_there_are_no_others() -> None:
    _, report = run("cluster-weights:bits=1", calibration=None, train={"x": X}, floors=None)
    assert report.verified_on.startswith("calibration: ")


def test_what_an_earlier_step_made_of_inputs_is_not_trained_with() -> None:
    text = """<opset_import: ["" : 17]>
        g (int64[N, 3] ids) => (float[N, 3, 2] y)
        <float[6, 2] t = {0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.7, 1.9, 2.3, 2.9},
         float[2, 2] w = {0.11, 0.23, 0.37, 0.41}> { e = Gather (t, ids) y = MatMul (e, w) }"""
    ids = np.random.default_rng(0).integers(0, 3, (20, 3))
    _, report = compress(
        parse(text),
        passes="prune-vocabulary:change-signature=true:unknown=0,finetune",
        calibration={"ids": ids},
        measure=False,
        floors=None,
        force=True,
    )
    assert "put finetune in front of the step" in skips(report)[-1]


def test_samples_are_asked_for() -> None:
    with pytest.raises(UsageError, match="needs calibration samples to train on"):
        run(TRAIN, calibration=None)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="Option `freeze` of `finetune` names `w9`"):
        run(f"cluster-weights:bits=2,{TRAIN}:freeze=w9", floors=None)
