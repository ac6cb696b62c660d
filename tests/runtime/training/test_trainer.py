"""A model learns from another one, never gets worse, and gives the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_nets import dense_net, net, node, normal, samples

from onnxslim.api import compress
from onnxslim.constraints.read import read_constraints
from onnxslim.errors import NotApplicable, UsageError
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.records import OutputKind
from onnxslim.runtime.training.trainer import SampleTrainer
from onnxslim.services.training import (
    CodeMovement,
    CodeRounding,
    Loss,
    Optimizer,
    Penalty,
    TrainingOutcome,
    TrainingRequest,
    ZeroMovement,
)
from support import parse

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
from onnxslim.runtime.training import checkpoint, loop, training_set  # noqa: E402
from onnxslim.runtime.training.training_set import averaged  # noqa: E402

TEACHER = Model.load(dense_net(12, 16, 4))
X = samples(120, 12)
REQUEST = TrainingRequest(epochs=8, batch=16, learning_rate=0.01)


def student(scale: float = 0.7) -> Model:
    """The teacher with smaller weights in its first layer."""
    model = TEACHER.clone()
    rw = Rewriter(model.graph)
    (holder,) = (t for n in model.graph.nodes for t in n.inputs if t.name == "w0")
    rw.set_values(holder, holder.values * np.float32(scale))
    rw.result()
    return model


def train(
    request: TrainingRequest = REQUEST,
    *,
    model: Model | None = None,
    teachers: Sequence[Model] = (TEACHER,),
    data: object = None,
    only: str = "",
) -> TrainingOutcome:
    trainer = SampleTrainer({"x": X} if data is None else data, threads=1)  # type: ignore[arg-type]
    return trainer.train(
        model or student(), list(teachers), request, lambda readers: not only or only in readers
    )


def test_the_model_comes_nearer_to_its_teacher() -> None:
    found = train()
    assert found.after < 0.2 * found.before
    assert (found.samples, found.held) == (96, 24)
    assert found.steps == 8 * 6
    assert set(found.values) == {"w0", "b0", "w1", "b1"}


@pytest.mark.parametrize(
    "change",
    [{"optimizer": Optimizer.SGD}, {"learning_rate": None}, {"temperature": 2.0}, {"batch": 200}],
    ids=str,
)
def test_all_ways_to_train_bring_it_nearer(change: dict[str, object]) -> None:
    found = train(replace(REQUEST, **change))  # type: ignore[arg-type]
    assert found.after < found.before


def test_two_runs_give_the_same_bytes() -> None:
    first, second = train(), train()
    for name, values in first.values.items():
        np.testing.assert_array_equal(second.values[name], values)


def test_nothing_is_handed_out_that_is_worse_than_what_came_in() -> None:
    found = train(replace(REQUEST, learning_rate=100.0, epochs=1))
    assert found.values == {}
    assert found.after == found.before


def test_a_rate_that_brings_nothing_is_followed_by_a_lower_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "best_rate", lambda *_: 100.0)
    monkeypatch.setattr(loop, "_CALMER", 1e-4)
    found = train(replace(REQUEST, learning_rate=None))
    assert found.learning_rate == pytest.approx(0.01)
    assert found.notes == ("a rate of up to 1e+02 brought nothing",)
    np.testing.assert_array_equal(found.values["w0"], train().values["w0"])


def test_the_rate_for_a_model_that_is_hardly_off_is_one_that_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Doubling a loss of next to nothing does no harm."""
    monkeypatch.setattr(loop, "_ATTEMPTS", 0)
    near, request = student(1 - 1e-3), replace(REQUEST, learning_rate=None, epochs=1)
    found = train(request, model=near).learning_rate
    monkeypatch.setattr(loop, "_SMALL", 0.0)
    assert found > 10 * train(request, model=near).learning_rate
    assert found > 1e-5


def test_layers_that_are_left_out_stay() -> None:
    assert set(train(only="y").values) == {"w1", "b1"}


def inner_names(patch: pytest.MonkeyPatch, most: int) -> set[str]:
    """The tensors that batches hold from then on, with so many bytes on the disk at most."""
    found: set[str] = set()
    original = training_set.TrainingSet.batch

    def batch(self: Any, group: Any) -> Any:
        made = original(self, group)
        found.update(made.inner)
        return made

    patch.setattr(training_set, "_MOST_INNER", most)
    patch.setattr(training_set.TrainingSet, "batch", batch)
    return found


def test_layers_in_front_of_the_first_that_learns_run_once() -> None:
    runs = []
    for most in (1 << 30, 0):
        with pytest.MonkeyPatch.context() as patch:
            names = inner_names(patch, most)
            runs.append((train(only="y"), names))
    (kept, names), (computed, none) = runs
    assert len(names) == 1
    assert not none
    assert set(kept.values) == {"w1", "b1"}
    assert kept.after < kept.before
    for name, values in computed.values.items():
        np.testing.assert_allclose(kept.values[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("only", ["", "h0"])
def test_layers_run_each_time_where_one_in_front_learns(only: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        names = inner_names(patch, 1 << 30)
        train(only=only)
    assert not names


def test_patience_ends_training() -> None:
    found = train(replace(REQUEST, learning_rate=100.0, epochs=50, patience=2))
    assert found.epochs == pytest.approx(2)
    assert "training ended after 2 epochs" in found.notes[0]


def interrupted(
    request: TrainingRequest, model: Model | None = None, *, epoch: int
) -> TrainingOutcome:
    """A run that is interrupted right after the checkpoint of an epoch was written."""
    saved = checkpoint.save

    def stop(*arguments: Any) -> None:
        saved(*arguments)
        if arguments[2].epoch == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save", stop)
        return train(request, model=model)


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = train()
    path = tmp_path / "run.npz"
    request = replace(REQUEST, checkpoint=str(path))
    part = interrupted(request, epoch=3)
    assert part.epochs == pytest.approx(3)
    assert part.notes == ("training was interrupted; the best values until then are kept",)
    assert part.after < part.before
    assert path.exists()
    found = train(request)
    assert found.steps == whole.steps
    for name, values in whole.values.items():
        np.testing.assert_array_equal(found.values[name], values)
    assert not path.exists()


def coded_student() -> Model:
    passes = "binarize-weights"
    model, _ = compress(TEACHER, passes=passes, force=True, floors=None, measure=False)
    return model


@pytest.mark.parametrize(
    "change",
    [
        {"codes": CodeMovement.MOVE},
        {"codes": CodeMovement.MOVE, "rounding": CodeRounding.STOCHASTIC},
        {"codes": CodeMovement.GROW},
        {"codes": CodeMovement.MOVE, "learning_rate": None},
    ],
    ids=str,
)
def test_codes_that_move_bring_the_model_nearer_and_an_interrupted_run_to_the_same_bytes(
    change: dict[str, Any], tmp_path: Path
) -> None:
    request = replace(REQUEST, **change)
    whole = train(request, model=coded_student())
    assert whole.after < 0.8 * whole.before
    assert any(values.dtype == np.uint8 for values in whole.values.values())
    request = replace(request, checkpoint=str(tmp_path / "run.npz"))
    interrupted(request, coded_student(), epoch=6)
    found = train(request, model=coded_student())
    assert found.steps == whole.steps
    for name, values in whole.values.items():
        np.testing.assert_array_equal(found.values[name], values)


@pytest.mark.parametrize("regularizer", [Penalty.L1, Penalty.GROUP_LASSO])
def test_a_regularizer_brings_groups_to_zero_and_the_last_values_are_kept(
    regularizer: Penalty, tmp_path: Path
) -> None:
    request = TrainingRequest(epochs=6, batch=16, regularizer=regularizer, decay=1.5)
    assert request.method is Optimizer.SGD
    whole = train(request, model=TEACHER)
    assert whole.after > whole.before
    assert "groups are zero" in whole.notes[0]
    rows = [np.all(whole.values[n] == 0, axis=0) for n in ("w0", "w1")]
    zeros = [np.mean(whole.values[n] == 0) for n in ("w0", "w1")]
    assert max(zeros) > 0.02
    assert regularizer is Penalty.L1 or any(map(np.any, rows))
    request = replace(request, checkpoint=str(tmp_path / "run.npz"))
    interrupted(request, TEACHER, epoch=3)
    found = train(request, model=TEACHER)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(found.values[name], values)


def test_zeros_that_move_are_trained_by_sgd_and_as_many_as_before() -> None:
    prune = "prune-weights:ratio=0.6:criterion=magnitude"
    model, _ = compress(TEACHER, passes=prune, force=True, floors=None, measure=False)
    request = replace(REQUEST, zeros=ZeroMovement.MOVE, learning_rate=None)
    assert request.method is Optimizer.SGD
    found = train(request, model=model)
    assert found.after < found.before
    given = {x.name: x.holder.values for x in read_constraints(model.graph).leaves()}
    moved = {name: (values == 0, given[name] == 0) for name, values in found.values.items()}
    assert any((now != before).any() for now, before in moved.values())
    assert all(now.sum() >= before.sum() for now, before in moved.values())


def test_zeros_that_grow_are_in_the_end_as_many_as_the_file_has(tmp_path: Path) -> None:
    prune = "prune-weights:ratio=0.6:criterion=magnitude"
    model, _ = compress(TEACHER, passes=prune, force=True, floors=None, measure=False)
    request = replace(REQUEST, zeros=ZeroMovement.GROW, start="original", epochs=4)
    whole = train(request, model=model)
    assert whole.after < whole.before
    given = {x.name: x.holder.values for x in read_constraints(model.graph).leaves()}
    pruned = [name for name, values in given.items() if np.count_nonzero(values) < values.size]
    assert pruned
    for name in pruned:
        assert np.count_nonzero(whole.values[name]) == np.count_nonzero(given[name])
    # the original has no loss that a range test could let double
    assert train(replace(request, learning_rate=None), model=model).learning_rate == 1e-3
    request = replace(request, checkpoint=str(tmp_path / "run.npz"))
    with pytest.raises(KeyboardInterrupt):  # not all zeros are there
        interrupted(request, model, epoch=2)
    found = train(request, model=model)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(found.values[name], values)


@pytest.mark.parametrize("start", ["original", "random"])
def test_training_from_other_values_is_kept_where_it_is_better(start: str) -> None:
    request = replace(REQUEST, start=start, epochs=4)
    found = train(request, model=student(-1.0))
    assert found.after < found.before
    assert found.notes[0] == f"start={start}: 4 of 4 stored weights took its values"
    kept = train(replace(request, learning_rate=1e-9), model=student(0.999))
    assert bool(kept.values) == (start == "original")


def test_training_starts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "early.onnx"
    TEACHER.save(path)
    found = train(replace(REQUEST, start=str(path), learning_rate=1e-9, epochs=1))
    np.testing.assert_allclose(found.values["w0"], normal_weight(), rtol=1e-5)


def test_epochs_before_all_elements_are_on_their_values_are_not_kept() -> None:
    request = replace(REQUEST, codes=CodeMovement.GROW, patience=1)
    found = train(request, model=coded_student())
    assert found.epochs > 6
    half = replace(REQUEST, codes=CodeMovement.GROW, epochs=1, minutes=1e-9)
    assert train(half, model=coded_student()).values.keys() <= found.values.keys()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    request = replace(REQUEST, checkpoint=str(path))
    torch.save({"digest": "other"}, path)
    with pytest.raises(UsageError, match="is a checkpoint of another run"):
        train(request)
    path.write_bytes(b"no archive")
    with pytest.raises(UsageError, match="is no checkpoint of a training run"):
        train(request)


def test_an_interruption_before_the_first_epoch_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.TrainingRun, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train()


def test_time_ends_training() -> None:
    found = train(replace(REQUEST, epochs=1e4, minutes=0.002))
    assert 0 < found.steps < 6e4


def test_several_teachers_are_averaged() -> None:
    both = train(teachers=[TEACHER, student(0.7)], model=student(0.7))
    one = train(model=student(0.7))
    assert both.before < one.before


def test_labels_take_the_place_of_a_teacher() -> None:
    labels = X[:, :4].argmax(1)
    data = {"x": X, "label": labels}
    found = train(replace(REQUEST, loss=Loss.LABELS), data=data)
    assert found.figure == "the loss on labels"
    assert found.after < found.before
    assert train(replace(REQUEST, loss=Loss.BOTH), data=data).steps == found.steps


def test_labels_that_are_missing_are_asked_for() -> None:
    with pytest.raises(UsageError, match="needs samples with labels"):
        train(replace(REQUEST, loss=Loss.LABELS))


def test_a_teacher_with_other_outputs_is_refused() -> None:
    other = net([node("MatMul", ["x", "w"], "z")], {"w": normal(12, 4)}, ["N", 12], outputs=("z",))
    with pytest.raises(UsageError, match="A teacher has other outputs than the model: z, where"):
        train(teachers=[Model.load(other)])


def test_a_model_without_weights_that_learn_is_declined() -> None:
    with pytest.raises(NotApplicable, match="no weight of the model learns"):
        train(only="nowhere")


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        (("z",), "no output holds floats"),
        (("e", "z"), "no gradient of what the outputs hold reaches a weight"),
    ],
)
def test_a_model_whose_outputs_no_weight_moves_smoothly_is_declined(
    outputs: tuple[str, ...], why: str
) -> None:
    types = {"e": "float[N, 12] e", "z": "int64[2, M] z"}
    numbers = ", ".join(["0.5", "0.25", "-1.5"] * 8)
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 12] x) => ({", ".join(map(types.__getitem__, outputs))})
    <float[12, 2] w = {{{numbers}}}> {{
        m = MatMul (x, w) z = NonZero (m) e = Exp (x)
    }}"""
    model = Model.load(parse(text))
    with pytest.raises(NotApplicable, match=why):
        train(model=model, teachers=(model,))


def test_inner_tensors_are_matched_where_they_are_named() -> None:
    plain, matched = (
        train(replace(REQUEST, features=features, epochs=2)) for features in ((), ("h*",))
    )
    assert set(plain.values) == set(matched.values)
    assert not np.array_equal(plain.values["w0"], matched.values["w0"])
    wrong = [np.abs(found.values["w0"] - normal_weight()).mean() for found in (plain, matched)]
    assert wrong[1] < wrong[0]


def normal_weight() -> np.ndarray:
    """The weight of the teacher that the student's is a part of."""
    found = (t for n in TEACHER.graph.nodes for t in n.inputs if t.name == "w0")
    return np.asarray(next(found).values)


def test_inner_tensors_that_are_not_there_are_refused() -> None:
    with pytest.raises(UsageError, match="`features` names `hidden`, which is no inner tensor"):
        train(replace(REQUEST, features=("hidden",)))


def picture_pair(factors: np.ndarray) -> tuple[Model, Model]:
    """A classifier of pictures, and one whose kernel (3, 3) is multiplied by `factors`."""
    nodes = [
        node("Conv", ["x", "k"], "c"),
        node("Flatten", ["c"], "f"),
        node("MatMul", ["f", "w"], "y"),
    ]
    weights = {"k": normal(4, 1, 3, 3), "w": normal(64, 3)}
    smaller = weights | {"k": (factors * weights["k"]).astype(np.float32)}
    teacher, learner = (Model.load(net(nodes, w, ["N", 1, 6, 6])) for w in (weights, smaller))
    return teacher, learner


def test_pictures_are_changed_for_student_and_teacher_alike() -> None:
    teacher, learner = picture_pair(np.full((3, 3), 0.6))
    request = replace(REQUEST, augment=("shift", "flip", "noise"))
    found = train(request, model=learner, teachers=[teacher], data={"x": samples(60, 1, 6, 6)})
    assert found.after < 0.5 * found.before


def test_a_rate_is_looked_for_on_changed_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    # the first weight of the kernel never sees the last pixel, which alone is not black
    factors, pictures = np.ones((3, 3)), np.zeros((60, 1, 6, 6), np.float32)
    factors[0, 0] = -2
    pictures[:, :, 5, 5] = samples(60, 1)
    monkeypatch.setattr(
        loop, "augmented", lambda feeds, *_: {"x": samples(len(feeds["x"]), 1, 6, 6)}
    )
    teacher, learner = picture_pair(factors)
    request = replace(REQUEST, augment=("shift",), learning_rate=None)
    found = train(request, model=learner, teachers=[teacher], data={"x": pictures})
    assert found.learning_rate > 1e-5


def test_mixtures_have_no_labels() -> None:
    with pytest.raises(UsageError, match="mixes pictures of several labels"):
        train(replace(REQUEST, loss=Loss.LABELS, augment=("mixup",)))


def test_probabilities_of_several_teachers_are_averaged() -> None:
    scores = [normal(5, 4, seed=seed) for seed in (1, 2)]
    shares = [np.exp(s) / np.exp(s).sum(-1, keepdims=True) for s in scores]
    made = np.exp(averaged(scores, OutputKind.CLASSES))
    np.testing.assert_allclose(made, np.mean(shares, 0), rtol=1e-5)
    plain = averaged(scores, OutputKind.VALUES)
    np.testing.assert_allclose(plain, np.mean(scores, 0), rtol=1e-5)


def test_samples_of_several_lengths_run_apart() -> None:
    nodes = [node("MatMul", ["x", "w"], "h"), node("ReduceMean", ["h"], "y", axes=[1], keepdims=0)]
    teacher = net(nodes, {"w": normal(6, 4)}, ["N", "L", 6])
    wrong = net(nodes, {"w": normal(6, 4) * np.float32(0.5)}, ["N", "L", 6])
    data = [{"x": samples(1, 3 + k % 3, 6, seed=k)} for k in range(30)]
    found = train(model=Model.load(wrong), teachers=[Model.load(teacher)], data=data)
    assert found.after < found.before
    assert found.samples == 24
