from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from recurrent_nets import recurrent_net

from onnxslim.errors import ModelError, RuntimeFailure, UsageError
from onnxslim.graph.ir import Constant
from onnxslim.io.model import Model
from onnxslim.pipeline.floors import DEFAULT
from onnxslim.pipeline.prover import Prover
from onnxslim.records import Fidelity, OutputKind
from onnxslim.runtime import session
from onnxslim.runtime.measure import latency
from onnxslim.runtime.measure import verify as verify_module
from onnxslim.runtime.measure.latency import RunTimes
from onnxslim.runtime.measure.steadiness import unsteady_outputs
from onnxslim.runtime.measure.verify import RuntimeProver
from onnxslim.runtime.samples.stream import Sample
from onnxslim.runtime.session import Feeds
from onnxslim.services.progress import Progress
from support import parse

NET = """<opset_import: ["" : 17]>
g (float[N, 8] x) => (float[N, 4] y, int64[N] answer) {
    h = MatMul (x, w)
    r = Relu (h)
    y = MatMul (r, v)
    answer = ArgMax <axis = 1, keepdims = 0> (y)
}"""
RANDOM = """<opset_import: ["" : 17]>
g (float[N, 8] x) => (float[N, 8] y) { n = RandomNormalLike (x) y = Add (x, n) }"""
PICKY = """<opset_import: ["" : 17]>
g (float[N, 8] x) => (float[3, 3] y) <int64[2] s = {3, 3}> { y = Reshape (x, s) }"""

DETECTOR = """<opset_import: ["" : 17]>
g (float[N, 8] x) => (float[N, 8] y) <float[4, 4] w = {9,1,2,3, 4,9,6,7, 8,9,9,2, 1,5,3,9}> {
    corners, raw = Split <axis = 1> (x)
    boxes = MatMul (corners, w)
    scores = Sigmoid (raw)
    y = Concat <axis = 1> (boxes, scores)
}"""


def detector(scores: str = "Sigmoid") -> Model:
    """Boxes beside scores, in one output."""
    return Model.load(parse(DETECTOR.replace("Sigmoid", scores)))


def net() -> Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NET.replace("<opset", "<ir_version: 8, opset", 1))
    for name, shape in (("w", (8, 64)), ("v", (64, 4))):
        values = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Model.load(proto)


def changed(model: Model, change: Callable[[Constant], np.ndarray]) -> Model:
    """A copy whose first weight is another."""
    copy = model.clone()
    weight = copy.graph.nodes[0].inputs[1]
    weight.values = change(weight)
    return copy


def edited(model: Model, edit: Callable[[onnx.ModelProto], None]) -> Model:
    proto = model.to_proto()
    edit(proto)
    return Model.load(proto)


def begun(model: Model, **options: object) -> RuntimeProver:
    prover = RuntimeProver(latency=False, **options)  # type: ignore[arg-type]
    assert prover.begin(model), prover.verified_on
    return prover


def test_it_is_a_prover() -> None:
    prover: Prover = RuntimeProver()
    assert prover.verified_on == "not verified: switched off"
    assert prover.notes == []


def test_copy_of_a_model_holds_every_promise() -> None:
    model = net()
    prover = begun(model)
    assert prover.verified_on == (
        "4 seeded samples (normal, uniform, integers, two sizes), no calibration data given"
    )
    for fidelity in Fidelity:
        found = prover.compare(model.clone(), fidelity)
        assert found.broken is None
        assert found.previous["y"].equal_bits
        assert found.original["answer"].sqnr_db == math.inf
        assert list(found.previous) == ["y", "answer"]


@pytest.mark.parametrize("fidelity", [Fidelity.EXACT, Fidelity.CLOSE])
@pytest.mark.parametrize("factor", [1.01, 2.0, 0.99, -1.0, 1000.0])
def test_scaled_weight_is_caught(factor: float, fidelity: Fidelity) -> None:
    model = net()
    bad = changed(model, lambda w: w.values * np.float32(factor))
    assert "`y`" in (begun(model).compare(bad, fidelity).broken or "")


def test_rounding_is_close_and_not_exact() -> None:
    model = net()
    prover = begun(model)
    rounded = changed(model, lambda w: np.nextafter(w.values, np.float32(9)))
    assert prover.compare(rounded, Fidelity.CLOSE).broken is None
    assert "EXACT promises equal bits" in (prover.compare(rounded, Fidelity.EXACT).broken or "")


@pytest.mark.parametrize("fidelity", Fidelity)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_caught(fidelity: Fidelity, value: float) -> None:
    model = net()
    bad = changed(model, lambda w: np.full_like(w.values, value))
    assert begun(model).compare(bad, fidelity).broken is not None


def test_lossy_change_is_measured_against_both_baselines() -> None:
    model = net()
    prover = begun(model)
    once = changed(model, lambda w: w.values * np.float32(1.1))
    first = prover.compare(once, Fidelity.LOSSY)
    assert first.broken is None
    assert first.previous["y"].rel_l2 == pytest.approx(0.1, rel=1e-3)
    assert first.previous == first.original
    prover.commit(once)
    twice = changed(once, lambda w: w.values * np.float32(1.1))
    second = prover.compare(twice, Fidelity.LOSSY)
    assert second.previous["y"].rel_l2 == pytest.approx(0.1, rel=1e-3)
    assert second.original["y"].rel_l2 == pytest.approx(0.21, rel=1e-3)


def test_dropped_candidate_does_not_become_the_baseline() -> None:
    model = net()
    prover = begun(model)
    prover.compare(changed(model, lambda w: w.values * np.float32(2)), Fidelity.LOSSY)
    assert prover.compare(model.clone(), Fidelity.EXACT).broken is None


def test_commit_without_a_comparison_is_run_when_needed() -> None:
    model = net()
    prover = begun(model)
    other = changed(model, lambda w: w.values * np.float32(2))
    prover.commit(other)
    assert prover.compare(other.clone(), Fidelity.EXACT).broken is None
    assert prover.compare(model.clone(), Fidelity.EXACT).broken is not None


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = proto.graph.node[2].output[0] = "other"
    proto.graph.node[3].input[0] = "other"


def swap_outputs(proto: onnx.ModelProto) -> None:
    outputs = list(proto.graph.output)
    del proto.graph.output[:]
    proto.graph.output.extend(reversed(outputs))


def cast_output(proto: onnx.ModelProto) -> None:
    proto.graph.node[3].output[0] = "as_int64"
    proto.graph.node.append(
        onnx.helper.make_node("Cast", ["as_int64"], ["answer"], to=onnx.TensorProto.INT32)
    )
    proto.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT32


def keep_dims(proto: onnx.ModelProto) -> None:
    next(a for a in proto.graph.node[3].attribute if a.name == "keepdims").i = 1
    proto.graph.output[1].type.tensor_type.ClearField("shape")


def rename_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "z"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename_output, "has the outputs `other`, `answer`"),
        (swap_outputs, "has the outputs `answer`, `y`"),
        (cast_output, r"has the output `answer` as tensor(int32)"),
        (keep_dims, "returned output `answer` as int64[1, 1], where int64[1] is expected"),
        (rename_input, "has the inputs `z`, where `x` are expected"),
    ],
)
@pytest.mark.parametrize("fidelity", Fidelity)
def test_changed_signature_is_caught(
    edit: Callable[[onnx.ModelProto], None], message: str, fidelity: Fidelity
) -> None:
    model = net()
    found = begun(model).compare(edited(model, edit), fidelity)
    assert message in (found.broken or "")
    assert found.previous == {}


def test_size_that_a_pass_froze_is_caught() -> None:
    model = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            g (float[N, 4] x) => (float[N, 2, 2] y) <int64[3] s = {-1, 2, 2}> {
                y = Reshape (x, s)
            }"""
        )
    )

    def freeze(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([1, 2, 2]), "s"))

    with pytest.raises(RuntimeFailure, match="Reshape"):
        begun(model).compare(edited(model, freeze), Fidelity.CLOSE)


def test_candidate_that_does_not_load_is_a_runtime_failure() -> None:
    model = net()

    def misspell(proto: onnx.ModelProto) -> None:
        proto.graph.node[1].op_type = "Rellu"

    prover = begun(model)
    with pytest.raises(RuntimeFailure, match="Rellu"):
        prover.compare(edited(model, misspell), Fidelity.CLOSE)


@pytest.mark.slow
def test_original_that_onnxruntime_refuses_is_a_runtime_failure() -> None:
    model = net()
    model.graph.nodes[1].op = "Rellu"
    with pytest.raises(RuntimeFailure, match="Rellu"):
        RuntimeProver().begin(model)


def test_random_models_are_not_verified_with_the_reason() -> None:
    prover = RuntimeProver(latency=False)
    model = Model.load(parse(RANDOM))
    assert not prover.begin(model)
    assert prover.verified_on.startswith("not verified: two runs of the input model")
    assert "`y`" in prover.verified_on
    found = prover.compare(model.clone(), Fidelity.CLOSE)
    assert (found.previous, found.broken) == ({}, None)


def test_models_that_run_on_nothing_are_not_verified_and_ask_for_data() -> None:
    prover = RuntimeProver(latency=False)
    model = Model.load(parse(PICKY))
    assert not prover.begin(model)
    assert prover.verified_on.startswith("not verified: no inputs could be made up")
    assert "Reshape" in prover.verified_on
    assert "--calib" in prover.verified_on
    assert "--input-shape" in prover.verified_on
    assert prover.time(model, model) is None
    prover = RuntimeProver(latency=False, input_shapes={"x": (9, 8)})
    assert not prover.begin(model)


def test_candidates_are_loaded_even_when_outputs_cannot_be_compared() -> None:
    prover = RuntimeProver(latency=False)
    model = Model.load(parse(RANDOM))
    prover.begin(model)

    def misspell(proto: onnx.ModelProto) -> None:
        proto.graph.node[1].op_type = "Plus"

    with pytest.raises(RuntimeFailure, match="Plus"):
        prover.compare(edited(model, misspell), Fidelity.CLOSE)


def test_sequence_outputs_are_not_verified_with_the_reason() -> None:
    model = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            g (float[N, 4] x) => (seq(float[N, 4]) q) { q = SequenceConstruct (x) }"""
        )
    )
    prover = RuntimeProver(latency=False)
    assert not prover.begin(model)
    assert "output `q` is seq(tensor(float))" in prover.verified_on


def test_calibration_data_are_what_outputs_are_compared_on() -> None:
    model = net()
    data = np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32)
    prover = begun(model, calibration={"x": data})
    assert prover.verified_on == "calibration: 40 samples"
    found = prover.compare(changed(model, lambda w: -w.values), Fidelity.LOSSY)
    assert found.previous["y"].agreement is not None


def test_evaluation_data_serve_when_there_is_no_calibration() -> None:
    data = np.random.default_rng(1).standard_normal((10, 8)).astype(np.float32)
    model = net()
    labels = np.zeros(10, np.int64)
    prover = begun(model, evaluation={"x": data, "label": labels})
    assert prover.verified_on == "evaluation: 10 samples"
    accuracy = prover.accuracy(model)
    assert accuracy is not None
    assert 0 <= accuracy <= 1
    assert begun(model).accuracy(model) is None


def test_calibration_that_does_not_fit_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"needs \[samples, 8\]"):
        RuntimeProver(calibration={"x": np.ones((3, 7), np.float32)}).begin(net())


def test_lossy_steps_use_the_wide_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxslim.runtime.measure import workload

    monkeypatch.setattr(workload, "PROBE_SECONDS", 0.0)
    data = np.zeros((40, 8), np.float32)
    data[20:] = np.random.default_rng(1).standard_normal((20, 8))
    model = net()
    prover = begun(model, calibration={"x": data})
    assert prover.verified_on == "calibration: 40 samples (4 of them for lossless steps)"
    other = changed(model, lambda w: w.values * 2)
    assert prover.compare(other, Fidelity.CLOSE).previous["y"].max_abs == 0
    assert prover.compare(other, Fidelity.LOSSY).previous["y"].rel_l2 == pytest.approx(1)
    prover.commit(other)
    assert prover.compare(model, Fidelity.LOSSY).previous["y"].rel_l2 == pytest.approx(0.5)


def test_outputs_that_prove_nothing_are_noted() -> None:
    model = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            g (float[N, 4] x) => (float[N, 4] y, int64[2, K] z, float[N, 4] n) {
                n = Abs (x)
                m = Neg (n)
                k = Constant <value = float {-1}> ()
                d = Add (m, k)
                y = Log (d)
                e = Relu (m)
                z = NonZero (e)
            }"""
        )
    )
    prover = begun(model)
    assert any("`y` was NaN" in note for note in prover.notes)
    assert any("`z` was empty" in note for note in prover.notes)
    assert prover.compare(model.clone(), Fidelity.EXACT).broken is None


NAN = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y) {
    n = Abs (x)
    m = Neg (n)
    one = Constant <value = float {1}> ()
    d = Sub (m, one)
    y = Log (d)
}"""


def test_outputs_that_are_always_nan_are_no_proof() -> None:
    model = Model.load(parse(NAN))
    prover = RuntimeProver(latency=False)
    assert not prover.begin(model)
    assert prover.verified_on.startswith(
        "not verified: outputs are NaN or infinite on all inputs that could be made up. Give"
    )
    given = RuntimeProver(latency=False, calibration={"x": np.ones((3, 4), np.float32)})
    assert not given.begin(model)
    assert given.verified_on == "not verified: outputs are NaN or infinite on all samples."


def test_failure_names_a_node_of_the_file_and_none_that_onnxruntime_made_up() -> None:
    proto = parse("""<opset_import: ["" : 17]>
    g (float[T, F] x) => (float[T, K] y)
    <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {7, 8, 9}> {
        c = MatMul (x, w)
        a = Add (c, b)
        y = Relu (a)
    }""")
    proto.graph.node[0].name = "product"
    prover = RuntimeProver(latency=False, input_shapes={"x": (4, 9)})
    assert not prover.begin(Model.load(proto))
    assert "`product` (MatMul)" in prover.verified_on
    assert "fused" not in prover.verified_on
    data = {"x": np.ones((3, 9), np.float32)}
    with pytest.raises(UsageError, match=r"`product` \(MatMul\)"):
        RuntimeProver(latency=False, calibration=data).begin(Model.load(proto))


def test_exact_falls_back_where_the_bare_model_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = session.open_session

    def no_bare(source: Model, *, optimise: bool = True, **options: Any) -> object:
        if not optimise:
            raise RuntimeFailure("not implemented")
        return real(source, **options)

    model = net()
    prover = begun(model)
    monkeypatch.setattr(verify_module, "open_session", no_bare)
    rounded = changed(model, lambda w: np.nextafter(w.values, np.float32(9)))
    assert prover.compare(rounded, Fidelity.EXACT).broken is None
    assert any("held to rounding" in note for note in prover.notes)
    bad = changed(model, lambda w: w.values * np.float32(1.01))
    assert prover.compare(bad, Fidelity.EXACT).broken is not None


def test_verification_off_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "open_session", lambda *a, **k: pytest.fail("opened"))
    prover = RuntimeProver(verify=False, latency=False)
    model = net()
    assert not prover.begin(model)
    assert prover.compare(model, Fidelity.EXACT).broken is None
    assert prover.time(model, model) is None
    assert prover.accuracy(model) is None
    prover.check_file(Path("missing.onnx"), model)
    assert prover.verified_on == "not verified: switched off"


def test_latency_can_be_measured_without_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MAX_ROUNDS", 9)
    prover = RuntimeProver(verify=False)
    model = net()
    assert not prover.begin(model)
    assert prover.verified_on == "not verified: switched off"
    pair = prover.time(model, model.clone())
    assert pair is not None
    assert pair.before.runs == pair.after.runs == 9
    assert pair.low <= pair.ratio <= pair.high


def test_models_that_take_microseconds_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MAX_ROUNDS", 9)
    model = Model.load(
        parse("""<opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Neg (x) }""")
    )
    prover = RuntimeProver()
    prover.begin(model)
    pair = prover.time(model, model)
    assert pair is not None
    assert pair.before.median > 0


SLOWER = RunTimes(*[np.array([[1.0] * 9, [2.0] * 9])] * 2)
LEVEL = RunTimes(*[np.array([[1.0, 1.1] * 5, [1.1, 1.0] * 5])] * 2)


def test_slower_model_is_timed_again_in_turned_order_and_said_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = [SLOWER, SLOWER.rows(1, 0), SLOWER, SLOWER.rows(1, 0)]
    monkeypatch.setattr(verify_module, "time_many", lambda *a, **k: rounds.pop(0))
    prover = RuntimeProver()
    model = net()
    prover.begin(model)
    pair = prover.time(model, model.clone())
    assert rounds == []
    assert pair is not None
    assert pair.is_slower
    assert pair.after.runs == 36


def test_model_that_seemed_slower_once_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [SLOWER, SLOWER.rows(1, 0), LEVEL, SLOWER]
    monkeypatch.setattr(verify_module, "time_many", lambda *a, **k: rounds.pop(0))
    prover = RuntimeProver()
    model = net()
    prover.begin(model)
    pair = prover.time(model, model.clone())
    assert len(rounds) == 1
    assert pair is not None
    assert not pair.is_slower


@pytest.mark.parametrize("external", [False, True])
def test_written_file_is_checked(tmp_path: Path, external: bool) -> None:
    model = net()
    prover = begun(model)
    model.save(tmp_path / "good.onnx", external=external)
    prover.check_file(tmp_path / "good.onnx", model)
    changed(model, lambda w: w.values * np.float32(1.01)).save(tmp_path / "bad.onnx")
    with pytest.raises(RuntimeFailure, match="not the model that was verified: it moved output"):
        prover.check_file(tmp_path / "bad.onnx", model)
    (tmp_path / "torn.onnx").write_bytes((tmp_path / "good.onnx").read_bytes()[:200])
    with pytest.raises(RuntimeFailure):
        prover.check_file(tmp_path / "torn.onnx", model)


def test_written_file_of_another_model_than_the_baseline_is_checked(tmp_path: Path) -> None:
    model = net()
    prover = begun(model)
    other = changed(model, lambda w: w.values * np.float32(2))
    other.save(tmp_path / "m.onnx")
    prover.check_file(tmp_path / "m.onnx", other)


def test_one_session_is_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = [0]
    most: list[int] = [0]
    enter, leave = session.Session.__enter__, session.Session.__exit__

    def entering(self: session.Session) -> session.Session:
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return enter(self)

    def leaving(self: session.Session, *details: object) -> None:
        alive[0] -= 1
        leave(self, *details)  # type: ignore[arg-type]

    monkeypatch.setattr(session.Session, "__enter__", entering)
    monkeypatch.setattr(session.Session, "__exit__", leaving)
    model = net()
    prover = begun(model)
    for fidelity in Fidelity:
        copy = model.clone()
        prover.compare(copy, fidelity)
        prover.commit(copy)
    gc.collect()
    assert most == [1]
    assert alive == [0]


def test_the_input_model_runs_once_on_each_seeded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[object] = []
    run = session.Session.run_all

    def counting(self: session.Session, feeds: Feeds, seconds: float | None = None) -> object:
        fed.append(feeds)
        return run(self, feeds, seconds)

    monkeypatch.setattr(session.Session, "run_all", counting)
    prover = begun(net())
    samples = list(prover.probes)
    assert [sum(feeds is sample for feeds in fed) for sample in samples] == [2, 1, 1, 1]
    assert len(fed) == 5  # the first one again, to see whether two runs agree


def test_progress_is_told_in_words() -> None:
    told: list[str] = []
    prover = RuntimeProver(latency=False, progress=Progress(lambda state: told.append(str(state))))
    model = net()
    prover.begin(model)
    prover.compare(model, Fidelity.CLOSE)
    assert [text for text in told if text] == ["running the input model", "comparing outputs"]


# ------------------------------------------------------------------ what onnxruntime cannot run


def _relu(opset: int, domain: str = "") -> Model:
    node = onnx.helper.make_node("Relu", ["x"], ["y"], domain=domain)
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")
    ]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", opset)]
    opsets += [onnx.helper.make_opsetid(domain, 1)] if domain else []
    return Model.load(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))


def test_a_model_with_an_operator_of_somebody_else_is_worked_on_unproven() -> None:
    model, prover = _relu(17, "acme"), RuntimeProver()
    assert not prover.begin(model)
    assert "does not have `acme.Relu` (node `y`)" in prover.verified_on
    assert prover.compare(model.clone(), Fidelity.CLOSE).broken is None
    assert prover.time(model, model) is None


@pytest.mark.parametrize("opset", [1, 99])
def test_an_opset_that_onnxruntime_does_not_run_is_an_error_of_the_model(opset: int) -> None:
    with pytest.raises(ModelError, match=f"uses opset {opset}"):
        RuntimeProver().begin(_relu(opset))


# ------------------------------------------------------------------ models that amplify rounding


def test_a_wrong_weight_is_no_noise() -> None:
    text = """<opset_import: ["" : 17]>
    g (float[N, 8] x) => (float[N, 8] y) <float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
        a = Mul (x, w)
        y = Sin (a)
    }"""
    model = Model.load(parse(text))
    prover = RuntimeProver(latency=False)
    assert prover.begin(model)
    wrong = model.clone()
    constant = wrong.graph.nodes[0].inputs[1]
    constant.values = constant.values * np.float32(1.01)
    assert "moved output `y`" in str(prover.compare(wrong, Fidelity.CLOSE).broken)


CHAOS = """<opset_import: ["" : 17]>
g (float[N, 16] x) => (float[N, 16] y)
<float w = {1.1}, float big = {1e7}> {
    a = Mul (x, w)
    b = Mul (a, big)
    y = Sin (b)
}"""


def test_a_model_that_amplifies_rounding_is_held_to_its_own_noise_and_says_so() -> None:
    model = Model.load(parse(CHAOS))
    prover = RuntimeProver(latency=False)
    assert prover.begin(model)
    rounded = model.clone()
    constant = rounded.graph.nodes[0].inputs[1]
    constant.values = np.nextafter(constant.values, np.float32(2))
    assert prover.compare(rounded, Fidelity.CLOSE).broken is None
    assert any("sensitive to rounding" in note for note in prover.notes)


def test_scores_beside_boxes_are_looked_at_alone() -> None:
    found = begun(detector()).compare(detector("HardSigmoid"), Fidelity.LOSSY).original
    whole, boxes, scores = (found[name] for name in ("y", "y[:, :4]", "y[:, 4:8]"))
    assert boxes.sqnr_db == math.inf
    assert scores.sqnr_db < whole.sqnr_db - 10
    assert boxes.agreement is None


def test_lossless_promises_are_about_whole_outputs() -> None:
    prover = begun(detector())
    assert prover.compare(detector(), Fidelity.EXACT).broken is None
    broken = prover.compare(detector("HardSigmoid"), Fidelity.CLOSE).broken
    assert broken is not None
    assert "`y`" in broken


def test_a_part_without_any_signal_is_not_spoken_of() -> None:
    def without_scores(proto: onnx.ModelProto) -> None:
        at = next(i for i, node in enumerate(proto.graph.node) if node.op_type == "Sigmoid")
        sub = onnx.helper.make_node("Sub", ["raw", "raw"], ["scores"])
        proto.graph.node[at].CopyFrom(sub)

    source = edited(detector(), without_scores)
    found = begun(source).compare(detector(), Fidelity.LOSSY).original
    assert set(found) == {"y", "y[:, :4]"}


DETECTIONS = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] p, int64[2, K] at)
<float[4, 4] w = {1, 0.2, 0.3, 0.4, 0.5, 1, 0.7, 0.8, 0.9, 1, 1, 0.2, 0.3, 0.4, 0.5, 1},
 float half = {0.5}> {
    a = MatMul (x, w)
    p = Sigmoid (a)
    m = Greater (p, half)
    at = NonZero (m)
}"""


def test_lossy_steps_may_change_sizes_that_depend_on_data_and_it_is_said() -> None:
    model = Model.load(parse(DETECTIONS))
    data = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    prover = begun(model, calibration={"x": data})
    other = changed(model, lambda w: np.float32(0.9) * w.values + np.float32(0.3))
    assert prover.compare(other, Fidelity.CLOSE).broken is not None
    found = prover.compare(other, Fidelity.LOSSY)
    assert found.broken is None
    assert not found.previous["at"].equal_bits
    assert any("`at` depends on data" in note for note in prover.notes)
    prover.commit(other)
    again = prover.compare(other.clone(), Fidelity.CLOSE)  # held to the sizes before it
    assert again.broken is None
    assert again.previous["at"].equal_bits
    assert not again.original["at"].equal_bits
    assert prover.compare(model, Fidelity.CLOSE).broken is not None


def test_rounding_behind_integer_inputs_is_noise_of_the_model() -> None:
    text = """<opset_import: ["" : 17]>
    g (int64[T] ids) => (int64[L] frames)
    <float[8] table = {10, 20, 30, 40, 50, 60, 70, 80}, float a = {2.6}, float b = {15},
     int64 zero = {0}, int64 one = {1}> {
        e = Gather (table, ids)
        c = Mul (e, a)
        d = Mul (c, b)
        f = Floor (d)
        s = ReduceSum <keepdims = 0> (f)
        n = Cast <to = 7> (s)
        frames = Range (zero, n, one)
    }"""
    model = Model.load(parse(text))
    prover = begun(model)

    def lower(proto: onnx.ModelProto) -> None:
        scale = next(each for each in proto.graph.initializer if each.name == "a")
        values = np.nextafter(onnx.numpy_helper.to_array(scale), np.float32(0))
        scale.CopyFrom(onnx.numpy_helper.from_array(values, "a"))

    found = prover.compare(edited(model, lower), Fidelity.CLOSE)
    assert found.broken is None
    assert not found.previous["frames"].equal_bits
    assert any("sensitive to rounding" in note for note in prover.notes)


def test_rounding_of_an_input_that_is_a_number_is_noise_of_the_model() -> None:
    text = """<opset_import: ["" : 17]>
    g (float x) => (float y) <float big = {1e7}> { a = Mul (x, big) y = Sin (a) }"""
    model = Model.load(parse(text))
    prover = begun(model)

    def grow(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].CopyFrom(
            onnx.numpy_helper.from_array(np.float32(1.1e7).reshape(()), "big")
        )

    assert prover.compare(edited(model, grow), Fidelity.CLOSE).broken is None
    assert any("sensitive to rounding" in note for note in prover.notes)


# ------------------------------------------------------------------ kernels of quantized nodes

CODED = """<opset_import: ["" : 18]>
g (float[n, 16] x) => (float[n, 8] y) <float[8] s = {1, 2, 3, 1, 2, 3, 1, 2}> {
    d = DequantizeLinear (w, s)
    a = Neg (d)
    b = Neg (a)
    y = MatMul (x, b)
}"""


def coded(*, joined: bool, factor: float = 1.0) -> Model:
    """A product with int8 codes, which onnxruntime puts in one kernel where nodes are joined."""
    proto = onnx.parser.parse_model(CODED.replace("<opset", "<ir_version: 8, opset", 1))
    codes = np.random.default_rng(0).integers(-128, 128, (16, 8)).astype(np.int8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(codes, "w"))
    if joined:
        proto.graph.node[3].input[1] = "d"
        del proto.graph.node[1:3]
    scale = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(factor)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(scale, "s"))
    return Model.load(proto)


def test_a_kernel_that_a_session_chooses_for_an_exact_step_is_said_and_no_bug() -> None:
    prover = begun(coded(joined=False))
    found = prover.compare(coded(joined=True), Fidelity.CLOSE)
    assert found.broken is None
    assert found.previous["y"].max_abs > 1e-4 * found.previous["y"].reference_range
    (note,) = (note for note in prover.notes if "kernels" in note)
    assert "moved output `y`" in note
    assert "session.disable_quant_qdq=1" in note


def test_a_wrong_step_is_a_bug_whatever_kernels_a_session_chooses() -> None:
    prover = begun(coded(joined=False))
    wrong = coded(joined=True, factor=1.01)
    assert "moved output `y`" in str(prover.compare(wrong, Fidelity.CLOSE).broken)
    assert not any("kernels" in note for note in prover.notes)


def test_what_a_kernel_costs_is_held_to_the_default_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = replace(DEFAULT, min_sqnr_db=90.0, sqnr_kinds=frozenset(OutputKind))
    monkeypatch.setattr(verify_module, "default_floors", lambda by: strict)
    prover = begun(coded(joined=False))
    assert "moved output `y`" in str(prover.compare(coded(joined=True), Fidelity.CLOSE).broken)


HALVES = """<opset_import: ["" : 17]>
g (float16[8] x) => (float16[8] y) { a = Sigmoid (x) b = Identity (a) y = Exp (b) }"""


@pytest.mark.parametrize("kind", ["float16", "float"])
def test_exact_steps_on_float16_are_held_to_rounding(kind: str) -> None:
    """Between Sigmoid and Exp onnxruntime rounds to float16 only where an Identity stands."""
    text = HALVES.replace("float16", kind)
    model = Model.load(parse(text))
    shorter = Model.load(parse(text.replace("b = Identity (a)", "").replace("(b)", "(a)")))
    wrong = Model.load(parse(text.replace("Exp (b)", "Sinh (b)")))
    prover = RuntimeProver(latency=False)
    prover.begin(model)

    assert prover.compare(shorter, Fidelity.EXACT).broken is None
    assert prover.compare(wrong, Fidelity.EXACT).broken is not None


ROUNDED = """<opset_import: ["" : 17]>
g (float16[N, 8] x) => (bool[N, 8] y) {
    a = Softplus (x)
    b = Concat <axis = 1> (a)
    c = Concat <axis = 1> (b)
    y = Equal (c, a)
}"""


def test_what_float16_rounds_between_operators_is_noise_of_the_model() -> None:
    """Equal compares a result of Softplus with itself, which two Concats round to float16."""
    prover = begun(Model.load(parse(ROUNDED)))
    shorter = ROUNDED.replace("c = Concat <axis = 1> (b)", "").replace("(c,", "(b,")
    found = prover.compare(Model.load(parse(shorter)), Fidelity.EXACT)
    assert not found.previous["y"].equal_bits
    assert found.broken is None
    wrong = begun(Model.load(parse(ROUNDED.replace("Equal", "Mul").replace("bool", "float16"))))
    text = ROUNDED.replace("Equal", "Sub").replace("bool", "float16")
    assert wrong.compare(Model.load(parse(text)), Fidelity.EXACT).broken is not None


# ------------------------------------------------------------- models that differ from themselves


SOMETIMES_RANDOM = """<opset_import: ["" : 17]>
g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z) <float zero = {0}> {
    n = RandomNormalLike (x)
    p = Greater (x, zero)
    y = Where (p, n, x)
    z = Exp (x)
}"""


def test_an_output_that_differs_from_itself_is_left_out_and_no_step_is_blamed() -> None:
    """On the first sample, which all inputs are asked twice on, nothing is random."""
    data = np.array([[-1, -2], [1, 2], [3, 4]], np.float32)
    prover = begun(
        Model.load(parse(SOMETIMES_RANDOM)), calibration=[{"x": row[None]} for row in data]
    )
    found = prover.compare(Model.load(parse(SOMETIMES_RANDOM)), Fidelity.CLOSE)
    assert found.broken is None
    assert set(found.previous) == {"z"}
    assert (
        "without `y`: two runs of the input model on the same sample differ" in prover.verified_on
    )
    wrong = Model.load(parse(SOMETIMES_RANDOM.replace("Exp (x)", "Sinh (x)")))
    assert "`z`" in str(prover.compare(wrong, Fidelity.CLOSE).broken)


def test_a_step_is_not_compared_where_no_output_is_the_same_again() -> None:
    text = SOMETIMES_RANDOM.replace(", float[N, 2] z)", ")").replace("z = Exp (x)", "")
    prover = begun(
        Model.load(parse(text)), calibration=[{"x": np.float32([[k] * 2])} for k in (-1, 1)]
    )
    found = prover.compare(Model.load(parse(text)), Fidelity.CLOSE)
    assert (found.broken, found.previous) == (None, {})
    assert prover.verified_on.startswith("not verified: two runs of the input model")


def test_a_random_output_does_not_keep_the_others_from_being_compared() -> None:
    text = RANDOM.replace("(float[N, 8] y)", "(float[N, 8] y, float[N, 8] z)").replace(
        "y = Add (x, n)", "y = Add (x, n) z = Exp (x)"
    )
    prover = begun(Model.load(parse(text)))
    assert "without `y`: two runs" in prover.verified_on
    wrong = Model.load(parse(text.replace("Exp (x)", "Sinh (x)")))
    assert "`z`" in str(prover.compare(wrong, Fidelity.CLOSE).broken)


def test_memory_that_nothing_wrote_is_found_out() -> None:
    """A Concat whose first operand is empty leaves the rest of its output as the memory was."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[P, A] x) => (float[N, M] y, float[P, A] z)
    <int64[1] from = {5000}, int64[1] to = {9000}, int64[1] axis = {0}> {
        e = Slice (x, from, to, axis) z = Neg (x) y = Concat <axis = 1> (e, z)
    }"""
    model = Model.load(onnx.parser.parse_model(text))
    rng = np.random.default_rng(0)
    runs = [Sample({"x": rng.standard_normal((4, 100)).astype(np.float32)}) for _ in range(4)]
    with session.open_session(model) as opened:
        reference = [opened.run(run.feeds) for run in runs]
    opening = partial(session.open_session, model)
    assert list(unsteady_outputs(opening, runs, reference, Fidelity.CLOSE)) == ["y"]


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_a_recurrent_layer_without_input_is_not_run(op: str) -> None:
    """Onnxruntime would end the process."""
    proto = recurrent_net(op=op)
    shape = proto.graph.input[0].type.tensor_type.shape
    shape.dim[1].dim_value = 0
    prover = RuntimeProver()
    model = Model.load(proto)

    assert not prover.begin(model)
    assert "reads an empty sequence or batch" in prover.verified_on
    assert prover.compare(model.clone(), Fidelity.EXACT).broken is None
    assert prover.time(model, model) is None
