from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.analysis.input_demands import InputDemands, input_demands
from onnxslim.analysis.input_roles import InputRole, RoleKind
from onnxslim.analysis.pinned_sizes import SizeDemands
from onnxslim.errors import RuntimeFailure
from onnxslim.graph.sizes import Sum
from onnxslim.io.model import Model
from onnxslim.runtime.samples import seeded as inputs_module
from onnxslim.runtime.samples.seeded import (
    InputKind,
    SeededInputs,
    draw_feeds,
    find_inputs,
    timing_samples,
)
from onnxslim.runtime.session import Dim, Feeds, Session, TensorInfo, open_session
from support import parse


def info(name: str, shape: tuple[Dim, ...] | None, dtype: object = np.float32) -> TensorInfo:
    return TensorInfo(name, "tensor(?)", np.dtype(dtype), shape)


def session_of(text: str) -> Session:
    return open_session(Model.load(parse(text)))


def search(text: str, **options: object) -> SeededInputs:
    with session_of(text) as session:
        return find_inputs(session.inputs, session.run, **options)  # type: ignore[arg-type]


def test_sizes_are_tried_until_the_model_accepts() -> None:
    found = search(
        """<opset_import: ["" : 17]>
        g (float[N, 3, H, W] x) => (float[N, 2] y) {
            f = Flatten (x)
            s = Constant <value = int64[2] {150528, 2}> ()
            w = ConstantOfShape (s)
            y = MatMul (f, w)
        }"""
    )
    assert found.failure is None
    assert found.samples[0]["x"].shape == (1, 3, 224, 224)
    assert found.samples[-1]["x"].shape == (2, 3, 224, 224)


def test_integer_inputs_get_values_that_the_model_accepts() -> None:
    found = search(
        """<opset_import: ["" : 17]>
        g (int64[N, T] ids) => (float[N, T, 1] y) <float[3, 1] table = {1, 2, 3}> {
            y = Gather (table, ids)
        }"""
    )
    assert found.failure is None
    assert all(feeds["ids"].max() < 3 for feeds in found.samples)
    assert all(feeds["ids"].dtype == np.int64 for feeds in found.samples)


def test_several_kinds_and_sizes_become_samples() -> None:
    found = search(
        """<opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Abs (x) }"""
    )
    assert found.description == "4 seeded samples (normal, uniform, integers, two sizes)"
    assert [feeds["x"].shape for feeds in found.samples] == [(1, 4), (1, 4), (1, 4), (2, 4)]
    integers = found.samples[2]["x"]
    np.testing.assert_array_equal(integers, np.round(integers))


def test_same_seed_gives_the_same_samples_and_another_seed_others() -> None:
    text = """<opset_import: ["" : 17]> g (float[2, 4] x) => (float[2, 4] y) { y = Abs (x) }"""
    a, b, c = search(text), search(text), search(text, seed=1)
    for left, right in zip(a.samples, b.samples, strict=True):
        np.testing.assert_array_equal(left["x"], right["x"])
    assert (a.samples[0]["x"] != c.samples[0]["x"]).any()
    assert (a.samples[0]["x"] != a.samples[3]["x"]).any()


def test_given_shapes_win_and_settle_symbols() -> None:
    text = """<opset_import: ["" : 17]>
    g (float[N, T] a, float[T, N] b) => (float[N, N] y) { y = MatMul (a, b) }"""
    found = search(text, input_shapes={"a": [5, 7]})
    assert found.samples[0]["a"].shape == (5, 7)
    assert found.samples[0]["b"].shape == (7, 5)
    assert all(feeds["a"].shape == (5, 7) for feeds in found.samples)


def test_model_without_inputs_has_one_empty_sample() -> None:
    found = search("""<opset_import: ["" : 17]>
        g () => (float[1] y) { y = Constant <value = float[1] {3}> () }""")
    assert found.samples == ({},)


def test_strings_and_booleans_are_drawn() -> None:
    found = search(
        """<opset_import: ["" : 17]>
        g (string[N] s, bool[N] b) => (string[N] t, bool[N] c) { t = Identity (s) c = Not (b) }"""
    )
    assert found.failure is None
    assert isinstance(found.samples[0]["s"].flat[0], str)
    assert found.samples[0]["b"].dtype == np.bool_


def test_unsupported_input_is_a_reason() -> None:
    sequence = TensorInfo("q", "seq(tensor(float))", None, None)
    found = find_inputs([sequence], lambda feeds: None)
    assert found.failure == (
        "No values can be made up for input `q`, which is a seq(tensor(float))."
    )


def test_tries_are_bounded_and_the_last_reason_is_kept() -> None:
    calls = []

    def refuse(feeds: Feeds) -> None:
        calls.append(feeds)
        raise RuntimeFailure("no thanks")

    found = find_inputs([info("x", ("a", "b", "c", "d")), info("n", ("e",), np.int64)], refuse)
    assert found.samples == ()
    assert found.failure == "no thanks"
    assert 20 < len(calls) <= inputs_module.MAX_TRIES


def test_enormous_samples_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_module, "MAX_BYTES", 100)
    found = find_inputs([info("x", (1000,))], lambda feeds: None)
    assert found.failure == "One sample would take 4,000 bytes."


def test_unknown_rank_is_tried() -> None:
    def two_axes(feeds: Feeds) -> None:
        if feeds["x"].ndim != 2:
            raise RuntimeFailure("rank")

    assert find_inputs([info("x", None)], two_axes).samples[0]["x"].ndim == 2


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int64", "bool", "O"]),
    kind=st.sampled_from(list(InputKind)),
    seed=st.integers(0, 100),
)
def test_drawn_arrays_have_the_asked_type_and_shape(
    shape: list[int], dtype: str, kind: InputKind, seed: int
) -> None:
    feeds = draw_feeds([info("x", tuple(shape), dtype)], {"x": tuple(shape)}, kind, seed)
    assert feeds["x"].dtype == np.dtype(dtype)
    assert feeds["x"].shape == tuple(shape)


MASKED = """<opset_import: ["" : 17]>
g (int64[N, T] ids, int64[N, T] mask, float[N, T] x) => (float[N, T] y)
<float one = {1}, float low = {-3.4e38}, int64[1] size = {50}> {
    table = ConstantOfShape (size)
    e = Gather (table, ids)
    m = Cast <to = 1> (mask)
    i = Sub (one, m)
    b = Mul (i, low)
    h = Add (e, x)
    s = Add (h, b)
    y = Softmax (s)
}"""


def demanded(text: str) -> SeededInputs:
    model = Model.load(parse(text))
    with open_session(model) as session:
        return find_inputs(session.inputs, session.run, demands=input_demands(model))


def test_values_follow_the_roles_of_inputs() -> None:
    found = demanded(MASKED)
    assert found.description == (
        "4 seeded samples (normal, uniform, integers, indices, masks, two sizes)"
    )
    ids = np.concatenate([feeds["ids"].reshape(-1) for feeds in found.samples])
    assert 40 < ids.max() < 50
    masks = [feeds["mask"] for feeds in found.samples]
    assert {int(each) for mask in masks for each in np.unique(mask)} == {0, 1}
    assert all((mask[:, 0] == 1).all() for mask in masks)  # a softmax over nothing is NaN


def test_inputs_without_a_role_are_drawn_as_ever() -> None:
    with session_of(MASKED) as session:
        inputs = session.inputs
    shapes = {"ids": (2, 5), "mask": (2, 5), "x": (2, 5)}
    demands = input_demands(Model.load(parse(MASKED)))
    for kind in InputKind:
        plain = draw_feeds(inputs, shapes, kind, 3)
        feeds = draw_feeds(inputs, shapes, kind, 3, demands)
        np.testing.assert_array_equal(plain["x"], feeds["x"])
        assert (plain["ids"] != feeds["ids"]).any()


def test_demanded_sizes_are_read_off_the_graph() -> None:
    found = demanded(
        """<opset_import: ["" : 17]>
        g (float[T, F] x) => (float[T, 64] y) <int64[2] s = {181, 64}> {
            w = ConstantOfShape (s)
            y = MatMul (x, w)
        }"""
    )
    assert [feeds["x"].shape for feeds in found.samples][::3] == [(1, 181), (2, 181)]


def test_wrong_demands_do_not_keep_a_model_from_being_run() -> None:
    wrong = InputDemands(
        {"x": (Sum.of("'N'"), 4)}, SizeDemands({"'N'": 13}), {"x": InputRole(RoleKind.PIXELS)}
    )

    def small(feeds: Feeds) -> dict[str, np.ndarray]:
        if feeds["x"].max() > 20:
            raise RuntimeFailure("no pixels")
        return dict(feeds)

    found = find_inputs([info("x", ("N", 4))], small, demands=wrong)
    assert found.samples[0]["x"].shape == (1, 4)


VOICE = """<opset_import: ["" : 17]>
g (float[?, ?] x, float[2, ?, 8] state, int64 rate) => (float[?, ?, ?] y, float[2, ?, 8] s)
<int64 high = {16000}, int64[1] one = {1}, int64[1] two = {2}, int64[3] few = {4, 1, 100},
 int64[3] many = {4, 1, 200}> {
    u = Unsqueeze (x, one)
    is_high = Equal (rate, high)
    y = If (is_high) <
        then_branch = t () => (a) { w = ConstantOfShape (many) a = Conv (u, w) },
        else_branch = e () => (b) { v = ConstantOfShape (few) b = Conv <dilations = [3]> (u, v) }
    >
    s = Abs (state)
}"""


def test_both_branches_run_and_windows_fit() -> None:
    found = demanded(VOICE)
    assert found.failure is None
    assert {int(feeds["rate"]) for feeds in found.samples} == {16000, 8000}
    # the dilated kernel of one branch spans 298 samples; the state has one row for each sample
    assert [feeds["x"].shape for feeds in found.samples][::3] == [(1, 512), (2, 768)]
    assert {feeds["state"].shape[:2] for feeds in found.samples} == {(2, 1), (2, 2)}


def test_sizes_follow_from_each_other() -> None:
    found = demanded("""<opset_import: ["" : 17]>
        g (float[?, ?, 4] past, float[?, ?, 4] x, float[?, ?, 4] mask) => (float[?, ?, 4] y) {
            j = Concat <axis = 1> (past, x)
            z = Concat <axis = 0> (mask, j)
            y = Abs (z)
        }""")
    assert found.failure is None
    for feeds in found.samples:
        past, x, mask = (feeds[name].shape for name in ("past", "x", "mask"))
        assert past[0] == x[0]
        assert mask[1] == past[1] + x[1]


def test_samples_to_time_on_have_one_size_and_all_kinds() -> None:
    model = Model.load(parse(VOICE))
    demands = input_demands(model)
    with open_session(model) as session:
        found = find_inputs(session.inputs, session.run, demands=demands)
        timed = timing_samples(model, session.inputs, session.run, found, demands=demands)
    assert {feeds["x"].shape for feeds in timed} == {(1, 16000)}
    assert {int(feeds["rate"]) for feeds in timed} == {16000, 8000}


def test_samples_without_a_number_are_not_kept_where_others_are_found() -> None:
    def picky(feeds: Feeds) -> dict[str, np.ndarray]:
        return {"y": np.where(feeds["n"].max() < 2, feeds["n"], np.nan)}

    found = find_inputs([info("n", (3,), np.int64)], picky)
    assert len(found.samples) == 4
    assert all(feeds["n"].max() < 2 for feeds in found.samples)


def test_samples_without_a_number_are_better_than_none() -> None:
    runs = []

    def silent(feeds: Feeds) -> dict[str, np.ndarray]:
        runs.append(feeds)
        return {"y": np.full(3, np.nan)}

    found = find_inputs([info("x", ("N", "T"))], silent)
    assert found.failure is None
    assert found.samples
    assert len(runs) == inputs_module.MAX_SILENT
