from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxslim.errors import RuntimeFailure, UsageError
from onnxslim.io.model import Model
from onnxslim.runtime.measure import run_rows
from onnxslim.runtime.measure.accuracy import open_evaluation
from onnxslim.runtime.session import Feeds, Outputs, Session, open_session
from support import parse

IDENTITY = """<opset_import: ["" : 17]>
g (float[N, 3] x) => (int64[N] rank, float[N, 3] y) {
    y = Identity (x)
    rank = ArgMax <axis = 1, keepdims = 0> (x)
}"""
SCORES = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]


@pytest.fixture
def session() -> Iterator[Session]:
    with open_session(Model.load(parse(IDENTITY))) as session:
        yield session


def score(session: Session, source: object) -> float:
    return open_evaluation(source, session.inputs).score(session)  # type: ignore[arg-type]


def test_top1_is_the_share_of_right_answers(session: Session) -> None:
    assert score(session, {"x": SCORES, "label": np.array([0, 1, 2, 0, 1])}) == 1.0
    assert score(session, {"x": SCORES, "label": np.array([0, 1, 2, 1, 2])}) == 0.6


def test_one_hot_and_column_labels_are_understood(session: Session) -> None:
    assert score(session, {"x": SCORES, "labels": SCORES}) == 1.0
    assert score(session, {"x": SCORES, "labels": np.array([[0], [1], [2], [0], [0]])}) == 0.8


def test_npz_and_list_give_the_same_as_arrays(session: Session, tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 1, 2])
    np.savez(tmp_path / "e.npz", x=SCORES, label=labels)
    assert score(session, tmp_path / "e.npz") == 0.6
    items = [{"x": SCORES[i], "label": labels[i]} for i in range(5)]
    assert score(session, items) == 0.6


def test_a_run_takes_as_many_samples_as_its_activations_allow(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = Model.load(parse(IDENTITY)), list[int]()
    run = session.run

    def counted(feeds: Feeds) -> Outputs:
        rows.append(len(feeds["x"]))
        return run(feeds)

    monkeypatch.setattr(session, "run", counted)
    monkeypatch.setattr(run_rows, "RUN_BYTES", 100)  # a sample takes 12 + 12 + 8 bytes
    found = open_evaluation({"x": SCORES, "label": np.array([0, 1, 2, 0, 1])}, session.inputs)
    assert found.score(session) == 1.0
    assert rows[-1] == 5
    assert found.score(session, model=model) == 1.0
    assert rows[-2:] == [3, 2]


def test_scores_with_trailing_axes_of_one_are_class_scores() -> None:
    text = IDENTITY.replace("float[N, 3] y", "float[N, 3, 1, 1] y").replace(
        "y = Identity (x)",
        "s = Constant <value = int64[4] {0, 3, 1, 1}> () y = Reshape (x, s)",
    )
    with open_session(Model.load(parse(text))) as session:
        assert score(session, {"x": SCORES, "label": np.array([0, 1, 2, 0, 1])}) == 1.0


def test_missing_labels_and_missing_scores_are_told(session: Session) -> None:
    with pytest.raises(UsageError, match="has no labels"):
        score(session, {"x": SCORES})
    with pytest.raises(UsageError, match="one integer for each sample"):
        score(session, {"x": SCORES, "label": np.linspace(0, 1, 5)})
    text = """<opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 1] y) <int64[1] a = {1}> {
        y = ReduceSum (x, a) }"""
    told = pytest.raises(UsageError, match=r"`y` float32\[.*, 1\].*`module:function`")
    with open_session(Model.load(parse(text))) as narrow, told:
        score(narrow, {"x": SCORES, "label": np.zeros(5, np.int64)})


def test_metric_gets_the_model_as_a_function(session: Session) -> None:
    def mean_score(run: Callable[[Feeds], Outputs]) -> np.float32:
        return run({"x": SCORES})["y"].mean()  # type: ignore[no-any-return]

    assert score(session, mean_score) == pytest.approx(1 / 3)


def test_metric_from_a_module_and_samples_from_a_module(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metric_for_test.py").write_text(
        "import numpy as np\n"
        "def metric(run, scale=1):\n"
        "    return run({'x': np.ones((1, 3), np.float32)})['y'].sum() / 4\n"
        "def samples():\n"
        "    return {'x': np.eye(3, dtype=np.float32), 'label': np.array([0, 1, 0])}\n"
    )
    assert score(session, "metric_for_test:metric") == 0.75
    assert score(session, "metric_for_test:samples") == pytest.approx(2 / 3)


@pytest.mark.parametrize("value", ["high", None, float("nan"), 1.0001, -0.25, float("inf"), 94.2])
def test_metric_must_return_a_share(session: Session, value: object) -> None:
    with pytest.raises(UsageError, match=r"returned .* must return a share in \[0, 1\]") as told:
        score(session, lambda run: value)
    assert repr(value) in str(told.value)
    assert ("Divide percents by 100" in str(told.value)) == (value in (1.0001, 94.2))


def test_metric_may_be_at_the_ends_of_its_range(session: Session) -> None:
    assert [score(session, lambda run, v=v: v) for v in (0, 1, np.float32(1))] == [0, 1, 1]


def test_function_without_arguments_gives_samples(session: Session) -> None:
    def stream() -> Iterator[dict[str, object]]:
        yield from ({"x": row, "target": row.argmax()} for row in SCORES)

    assert score(session, stream) == 1


def test_failures_in_a_metric_name_whose_they_are(session: Session) -> None:
    def broken(run: Callable[[Feeds], Outputs]) -> float:
        raise KeyError("mine")

    with pytest.raises(UsageError, match="`broken` failed with KeyError"):
        score(session, broken)
    with pytest.raises(RuntimeFailure):
        score(session, lambda run: run({"x": np.ones((1, 2), np.float32)}))
