"""The manager: negative controls of the verifier, blame, rollback, judging, rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxslim.errors import ModelError, NotApplicable, PromiseBroken, RuntimeFailure
from onnxslim.graph.ir import Constant, Node
from onnxslim.io.model import Model
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.options import at_least, option
from onnxslim.pipeline.passes import Context, Pass, Preset
from onnxslim.pipeline.policy import Goal, Policy
from onnxslim.records import Change, Fidelity, PassResult
from onnxslim.report import Latency, LatencyPair
from onnxslim.runtime.measure.verify import RuntimeProver
from onnxslim.runtime.session import Session
from onnxslim.services.progress import Progress
from support import CONTEXT, parse

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {0.1, 0.2, 0.3, -0.4, 0.5, 0.6, 0.7, -0.8, 0.9, 1.0, 1.1, -1.2},
 float[3] b = {0.1, 0.2, 0.3}> {
    h = MatMul (x, w)
    a = Add (h, b)
    r = Relu (a)
    y = Sigmoid (r)
}"""


def _edit(edit: Callable[[gs.Graph], None], *, says: bool = True, **facts: object) -> Pass:
    """A pass that does `edit`."""

    @dataclass(frozen=True)
    class Sabotage(Pass):
        """Does what the test wants."""

        name: ClassVar[str] = "sabotage"
        fidelity: ClassVar[Fidelity] = facts.get("fidelity", Fidelity.CLOSE)  # type: ignore[assignment]
        prepares: ClassVar[bool] = bool(facts.get("prepares"))

        def run(self, graph: gs.Graph, context: Context) -> PassResult:
            edit(graph)
            return PassResult((Change("y", "edited"),) if says else ())

    return Sabotage()


def _scale_weight(graph: gs.Graph) -> None:
    constant = graph.nodes[0].inputs[1]
    constant.values = constant.values * np.float32(1.01)


def _drop_node(graph: gs.Graph) -> None:
    relu = next(node for node in graph.nodes if node.op == "Relu")
    user = relu.outputs[0].outputs[0]
    user.inputs[0] = relu.inputs[0]
    graph.nodes.remove(relu)


def _rename_output(graph: gs.Graph) -> None:
    graph.outputs[0].name = "z"


def _cast_output(graph: gs.Graph) -> None:
    last = graph.nodes[-1]
    inner = gs.Variable("inner")
    output = last.outputs[0]
    last.outputs = [inner]
    cast = Node("Cast", attrs={"to": onnx.TensorProto.DOUBLE}, inputs=[inner], outputs=[output])
    graph.nodes.append(cast)


def _make_nan(graph: gs.Graph) -> None:
    bias = graph.nodes[1].inputs[1]
    bias.values = np.full(3, np.nan, np.float32)


def _raise(graph: gs.Graph) -> None:
    raise KeyError("no such thing")


def _unload(graph: gs.Graph) -> None:
    graph.nodes[2].op = "Conv"


def _double(graph: gs.Graph) -> None:
    """An output twice as large passes any tolerance relative to the result."""
    last = graph.nodes[-1]
    inner = gs.Variable("inner")
    output = last.outputs[0]
    last.outputs = [inner]
    two = Constant("two", np.array(2, np.float32))
    graph.nodes.append(Node("Mul", inputs=[inner, two], outputs=[output]))


@pytest.fixture
def prover() -> RuntimeProver:
    return RuntimeProver(latency=False)


def _run(
    tmp_path: Path, prover: RuntimeProver | None, *passes: Pass, policy: Policy | None = None
) -> tuple[Model, list]:  # type: ignore[type-arg]
    model = Model.load(parse(TEXT))
    if prover is not None:
        assert prover.begin(model)
    return PassManager(passes).run(
        model, CONTEXT, prover=prover, policy=policy, reproducers=tmp_path / "repro"
    )


CONTROLS = [
    pytest.param(_scale_weight, True, "output `y`", id="scales a weight by 1.01"),
    pytest.param(_drop_node, False, "reported no change", id="drops a node without saying so"),
    pytest.param(_rename_output, True, "inputs or outputs", id="renames an output"),
    pytest.param(_cast_output, True, "does not run|dtype", id="changes an output's dtype"),
    pytest.param(_make_nan, True, "output `y`", id="returns NaN"),
    pytest.param(_raise, True, "KeyError", id="raises"),
    pytest.param(_unload, True, "does not run|invalid", id="makes a model that does not load"),
    pytest.param(_double, True, "output `y`", id="doubles the output"),
]


@pytest.mark.parametrize(("edit", "says", "message"), CONTROLS)
def test_a_broken_promise_is_caught_named_and_reproducible(
    tmp_path: Path,
    prover: RuntimeProver,
    edit: Callable[[gs.Graph], None],
    says: bool,
    message: str,
) -> None:
    with pytest.raises(PromiseBroken, match="`sabotage`") as caught:
        _run(tmp_path, prover, _edit(edit, says=says))
    assert caught.match(message)
    assert caught.match("onnxslim .*--passes sabotage")
    repro = tmp_path / "repro" / "model-before-sabotage.onnx"
    assert onnx.load(repro).graph.node[0].op_type == "MatMul"
    assert Model.load(repro).to_bytes() == Model.load(parse(TEXT)).to_bytes()
    assert "--passes sabotage" in repro.with_suffix(".txt").read_text()


@pytest.mark.parametrize(("edit", "says", "message"), CONTROLS)
def test_the_guilty_member_of_a_preset_is_found(
    tmp_path: Path,
    prover: RuntimeProver,
    edit: Callable[[gs.Graph], None],
    says: bool,
    message: str,
) -> None:
    guilty = _once(edit, says)

    @dataclass(frozen=True)
    class Family(Preset):
        """Good passes around a bad one."""

        name: ClassVar[str] = "family"

        def members(self) -> tuple[Pass, ...]:
            return (_RenameNodes(), guilty, _RenameNodes(prefix="other"))

    with pytest.raises(PromiseBroken, match="`sabotage`") as caught:
        _run(tmp_path, prover, Family())
    assert caught.match(message)
    repro = onnx.load(tmp_path / "repro" / "model-before-sabotage.onnx")
    assert [node.name for node in repro.graph.node] == ["n0", "n1", "n2", "n3"]


def _once(edit: Callable[[gs.Graph], None], says: bool) -> Pass:
    """Like `_edit`, but does nothing to a graph that bears its mark already."""

    def marked(graph: gs.Graph) -> None:
        edit(graph)
        graph.doc_string = "sabotaged"

    inner = _edit(marked, says=says)

    @dataclass(frozen=True)
    class Sabotage(Pass):
        """Does what the test wants, once."""

        name: ClassVar[str] = "sabotage"
        fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

        def run(self, graph: gs.Graph, context: Context) -> PassResult:
            if graph.doc_string == "sabotaged":
                return PassResult()
            return inner.run(graph, context)

    return Sabotage()


@dataclass(frozen=True)
class _RenameNodes(Pass):
    """Give nodes that have no name one: harmless."""

    name: ClassVar[str] = "rename"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    prefix: str = option("n", help="begin of the names")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Name the nameless."""
        changes = []
        for index, node in enumerate(graph.nodes):
            if not node.name:
                node.name = f"{self.prefix}{index}"
                changes.append(Change(node.label, "named"))
        return PassResult(tuple(changes))


def test_an_honest_pass_is_committed_and_the_source_is_left_alone(
    tmp_path: Path, prover: RuntimeProver
) -> None:
    model = Model.load(parse(TEXT))
    before = model.to_bytes()
    prover.begin(model)
    result, steps = PassManager([_RenameNodes()]).run(
        model, CONTEXT, prover=prover, policy=Policy(force=True), reproducers=tmp_path
    )
    assert [node.name for node in result.graph.nodes] == ["n0", "n1", "n2", "n3"]
    assert steps[0].committed
    assert steps[0].comparison is not None
    assert steps[0].comparison.original["y"].equal_bits
    assert model.to_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_an_exact_pass_may_not_move_a_single_bit(tmp_path: Path, prover: RuntimeProver) -> None:
    def nudge(graph: gs.Graph) -> None:
        constant = graph.nodes[0].inputs[1]
        constant.values = np.nextafter(constant.values, np.float32(100))

    with pytest.raises(PromiseBroken, match=r"EXACT|bit"):
        _run(tmp_path, prover, _edit(nudge, fidelity=Fidelity.EXACT))
    _run(tmp_path, RuntimeProver(latency=False), _edit(nudge, fidelity=Fidelity.CLOSE))


def test_a_step_that_enlarges_the_file_is_left_out_with_the_numbers(
    tmp_path: Path, prover: RuntimeProver
) -> None:
    def grow(graph: gs.Graph) -> None:
        graph.doc_string = "x" * 1000

    result, steps = _run(tmp_path, prover, _edit(grow))
    assert result.graph.doc_string == ""
    assert not steps[0].committed
    assert steps[0].why_not_committed is not None
    assert "would grow from" in steps[0].why_not_committed
    for policy in (Policy(force=True), Policy(goal=Goal.LATENCY)):
        result, steps = _run(tmp_path, RuntimeProver(latency=False), _edit(grow), policy=policy)
        assert len(result.graph.doc_string) == 1000
        assert steps[0].committed


def test_a_lossy_step_that_gains_nothing_is_left_out(tmp_path: Path, prover: RuntimeProver) -> None:
    result, steps = _run(tmp_path, prover, _edit(_scale_weight, fidelity=Fidelity.LOSSY))
    assert not steps[0].committed
    assert "gains nothing" in str(steps[0].why_not_committed)
    assert result.to_bytes() == Model.load(parse(TEXT)).to_bytes()


def test_a_floor_that_is_missed_rolls_the_step_back(tmp_path: Path, prover: RuntimeProver) -> None:
    policy = Policy(force=True, floors=Floors(min_sqnr_db=90.0))
    result, steps = _run(
        tmp_path, prover, _edit(_scale_weight, fidelity=Fidelity.LOSSY), policy=policy
    )
    assert steps[0].floor_missed
    assert "--min-sqnr is 90" in str(steps[0].why_not_committed)
    assert result.to_bytes() == Model.load(parse(TEXT)).to_bytes()


def test_a_pass_that_prepares_is_judged_with_what_follows(
    tmp_path: Path, prover: RuntimeProver
) -> None:
    def grow(graph: gs.Graph) -> None:
        graph.doc_string = "x" * 1000

    def shrink(graph: gs.Graph) -> None:
        graph.doc_string = ""
        _drop_node(graph)

    result, steps = _run(
        tmp_path,
        prover,
        _edit(grow, prepares=True, fidelity=Fidelity.LOSSY),
        _edit(shrink, fidelity=Fidelity.LOSSY),
    )
    assert [step.committed for step in steps] == [True, True]
    assert result.graph.doc_string == ""


def test_a_pass_that_prepares_is_held_to_the_floor_where_what_follows_does_nothing(
    tmp_path: Path, prover: RuntimeProver
) -> None:
    result, steps = _run(
        tmp_path,
        prover,
        _edit(_scale_weight, prepares=True, fidelity=Fidelity.LOSSY),
        _edit(lambda graph: None, says=False, fidelity=Fidelity.LOSSY),
        policy=Policy(force=True, floors=Floors(min_sqnr_db=90.0)),
    )
    assert [step.floor_missed for step in steps] == [True, True]
    assert result.to_bytes() == Model.load(parse(TEXT)).to_bytes()


def test_an_exact_step_behind_a_lossy_one_is_held_to_the_weaker_promise(
    tmp_path: Path, prover: RuntimeProver
) -> None:
    _, steps = _run(
        tmp_path,
        prover,
        _edit(_scale_weight, prepares=True, fidelity=Fidelity.LOSSY),
        _RenameNodes(),
        policy=Policy(force=True),
    )
    assert [step.committed for step in steps] == [True, True]


class _SlowWith(RuntimeProver):
    """Finds a model slower when a node bears a given name."""

    def __init__(self, name: str) -> None:
        super().__init__(latency=False)
        self.slow = name

    def time(self, before: Model, after: Model) -> LatencyPair:
        slow = any(node.name == self.slow for node in after.graph.nodes)
        latency = Latency(1.0, 0.9, 1.1, 20)
        return LatencyPair(latency, latency, *((0.5, 0.4, 0.6) if slow else (1.0, 0.9, 1.1)))


@dataclass(frozen=True)
class _SlowFamily(Preset):
    """One member too slow."""

    name: ClassVar[str] = "family"
    has_slow: bool = option(default=True, help="whether it has the slow member")

    def members(self) -> tuple[Pass, ...]:
        slow = (_Renamed(prefix="slow"),) if self.has_slow else ()
        return (*slow, _RenameNodes(prefix="fast"))

    def leaving_out(self, sites: Mapping[str, Sequence[str]]) -> Pass:
        return _SlowFamily(has_slow="renamed" not in sites)


def test_a_preset_that_is_slower_is_kept_without_the_member_to_blame(tmp_path: Path) -> None:
    prover = _SlowWith("slow0")
    result, steps = _run(tmp_path, prover, _SlowFamily(), policy=Policy(goal=Goal.LATENCY))
    assert result.graph.nodes[0].name == "fast0"
    why = str(steps[0].why_partly)
    assert why.startswith("4 rewrites of renamed (`h`, `a`, `r` and 1 more): with them, the model")
    assert steps[0].resolved == "family:has-slow=false"


class _FailsOn(RuntimeProver):
    """Sessions fail on nodes of a given name, with optimisations alone or in any case."""

    def __init__(self, name: str, *, bare: bool = False) -> None:
        super().__init__(latency=False)
        self.name, self.bare = name, bare

    def _open(self, model: Model, *, optimise: bool = True, **options: bool) -> Session:
        if (optimise or self.bare) and any(node.name == self.name for node in model.graph.nodes):
            raise RuntimeFailure("onnxruntime cannot load the model: fusion.cc")
        return super()._open(model, optimise=optimise, **options)


def test_a_preset_is_kept_without_what_optimisations_of_onnxruntime_fail_on(tmp_path: Path) -> None:
    policy = Policy(force=True)
    result, steps = _run(tmp_path, _FailsOn("slow1"), _SlowFamily(), policy=policy)
    assert result.graph.nodes[0].name == "fast0"
    why = str(steps[0].why_partly)
    assert why.startswith(
        "4 rewrites of renamed (`h`, `a`, `r` and 1 more): with them, onnxruntime"
    )
    assert "which runs without them" in why
    assert "fusion.cc" in why


@pytest.mark.parametrize("fidelity", [Fidelity.EXACT, Fidelity.CLOSE, Fidelity.LOSSY])
def test_a_right_step_that_optimisations_fail_on_is_left_out_with_those_it_is_judged_with(
    tmp_path: Path, fidelity: Fidelity
) -> None:
    def name(graph: gs.Graph) -> None:
        graph.nodes[0].name = "bad"

    steps = (
        _edit(name, prepares=True, fidelity=fidelity),
        _edit(lambda graph: None, says=False, fidelity=fidelity),
    )
    result, reports = _run(tmp_path, _FailsOn("bad"), *steps, policy=Policy(force=True))
    assert [report.committed for report in reports] == [False, False]
    assert "fusion.cc" in str(reports[0].why_not_committed)
    assert result.to_bytes() == Model.load(parse(TEXT)).to_bytes()


def test_a_model_that_does_not_run_at_all_is_blamed_on_the_pass(tmp_path: Path) -> None:
    def name(graph: gs.Graph) -> None:
        graph.nodes[0].name = "bad"

    with pytest.raises(PromiseBroken, match="does not run"):
        _run(tmp_path, _FailsOn("bad", bare=True), _edit(name))


def test_a_wrong_model_that_optimisations_fail_on_is_blamed_on_the_pass(tmp_path: Path) -> None:
    def spoil(graph: gs.Graph) -> None:
        graph.nodes[0].name = "bad"
        _scale_weight(graph)

    with pytest.raises(PromiseBroken, match="does not run"):
        _run(tmp_path, _FailsOn("bad"), _edit(spoil))


@dataclass(frozen=True)
class _Renamed(_RenameNodes):
    """The same by another name."""

    name: ClassVar[str] = "renamed"


def test_a_pass_that_does_not_apply_says_why(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Picky(Pass):
        """Applies to nothing."""

        name: ClassVar[str] = "picky"
        fidelity: ClassVar[Fidelity] = Fidelity.EXACT

        def requires(self, graph: gs.Graph, context: Context) -> None:
            raise NotApplicable("there is no Conv")

    _, steps = _run(tmp_path, None, Picky())
    assert steps[0].skips[0].why == "there is no Conv"


def test_errors_about_the_model_are_not_blamed_on_the_pass(tmp_path: Path) -> None:
    def corrupt(graph: gs.Graph) -> None:
        raise ModelError("Tensor `w` cannot be read.")

    with pytest.raises(ModelError, match="`w`"):
        _run(tmp_path, None, _edit(corrupt))


def test_rounds_end_when_nothing_changes_any_more(tmp_path: Path) -> None:
    runs = []

    @dataclass(frozen=True)
    class Countdown(Pass):
        """Changes three times, then no more."""

        name: ClassVar[str] = "countdown"
        fidelity: ClassVar[Fidelity] = Fidelity.EXACT
        start: int = option(3, at_least(0), "how often")

        def run(self, graph: gs.Graph, context: Context) -> PassResult:
            runs.append(len(graph.doc_string))
            if len(graph.doc_string) >= self.start:
                return PassResult()
            graph.doc_string += "x"
            return PassResult((Change("y", "counted"),))

    @dataclass(frozen=True)
    class Family(Preset):
        """Counts down."""

        name: ClassVar[str] = "family"

        def members(self) -> tuple[Pass, ...]:
            return (Countdown(), _RenameNodes())

    _, steps = _run(tmp_path, None, Family(), policy=Policy(force=True))
    assert len(steps[0].changes) == 3 + 4
    assert runs == [0, 1, 2, 3]


# ------------------------------------------------------------------- what passes are given


@dataclass(frozen=True)
class _Spy(Pass):
    """Notes what it is given; changes the weight if it is told to."""

    name: ClassVar[str] = "spy"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    seen: ClassVar[list[tuple[Context, bool]]] = []
    change: bool = option(default=False, help="whether it does something")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        assert context.model is not None
        _Spy.seen.append((context, context.model.graph is graph))
        if not self.change:
            return PassResult()
        _scale_weight(graph)
        return PassResult((Change("y", "scaled"),))


@dataclass(frozen=True)
class _PreparingSpy(_Spy):
    """The same, judged with what follows."""

    prepares: ClassVar[bool] = True


@dataclass(frozen=True)
class _MendingSpy(_Spy):
    """The same, in place of training."""

    mends: ClassVar[bool] = True
    trains: ClassVar[bool] = True  # type: ignore[assignment]
    change: bool = option(default=True, help="whether it does something")


def _targets(tmp_path: Path, *passes: Pass) -> list[Model | None]:
    """The target that each spy was given; the first model is the one before all."""
    _Spy.seen.clear()
    model = Model.load(parse(TEXT))
    shown = Progress()
    PassManager(passes).run(
        model, CONTEXT, policy=Policy(force=True), progress=shown, reproducers=tmp_path
    )
    for context, own in _Spy.seen:
        assert own
        assert context.progress is shown
        assert context.evaluate is CONTEXT.evaluate
    return [model, *(context.target for context, _ in _Spy.seen)]


def _first_weight(model: Model | None) -> float:
    assert model is not None
    return float(model.graph.nodes[0].inputs[1].values[0, 0])


def test_lossy_steps_aim_at_the_model_before_the_first_of_them(tmp_path: Path) -> None:
    original, *found = _targets(tmp_path, _Spy(change=True), _Spy(change=True), _Spy())
    assert [model is original for model in found] == [True, True, True]


def test_after_a_lossless_change_they_aim_at_what_it_made(tmp_path: Path) -> None:
    original, *found = _targets(tmp_path, _Spy(change=True), _RenameNodes(), _Spy(), _Spy())
    assert found[0] is original
    assert found[1] is not original
    assert found[1] is found[2]
    assert _first_weight(found[1]) == pytest.approx(0.101)
    assert found[1] is not None
    assert found[1].graph.nodes[0].name == "n0"


def test_a_lossless_step_that_changes_nothing_leaves_the_aim(tmp_path: Path) -> None:
    original, *found = _targets(tmp_path, _RenameNodes(), _Spy(change=True), _RenameNodes(), _Spy())
    assert found[0] is found[1]
    assert found[0] is not original


def test_a_lossless_change_right_behind_what_prepares_moves_the_aim_too(tmp_path: Path) -> None:
    for change in (True, False):
        original, *found = _targets(tmp_path, _PreparingSpy(change=change), _RenameNodes(), _Spy())
        assert found[0] is original
        assert found[1] is not original


def test_the_reference_stays_once_a_lossy_step_was_kept(tmp_path: Path) -> None:
    _targets(tmp_path, _RenameNodes(), _Spy(change=True), _RenameNodes(), _Spy())
    first, second = (context.reference for context, _ in _Spy.seen)
    assert first is second
    assert _first_weight(first) == pytest.approx(0.1)


def test_after_training_steps_aim_at_what_it_made(tmp_path: Path) -> None:
    original, *found = _targets(tmp_path, _Spy(change=True), _MendingSpy(), _Spy(change=True))
    assert found[1] is original  # training has a teacher, but steps right before it an aim
    assert found[2] is not original
    references = [context.reference for context, _ in _Spy.seen]
    assert [model is original for model in references] == [True] * 3


def test_training_that_is_dropped_leaves_the_aim(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Growing(_MendingSpy):
        """Training, after which the file is larger."""

        def run(self, graph: gs.Graph, context: Context) -> PassResult:
            graph.doc_string = "x" * 1000
            return super().run(graph, context)

    _Spy.seen.clear()
    model = Model.load(parse(TEXT))
    PassManager([Growing(), _Spy()]).run(model, CONTEXT, reproducers=tmp_path)
    assert _Spy.seen[-1][0].target is model


def test_what_prepares_and_what_follows_aim_at_the_same(tmp_path: Path) -> None:
    original, *found = _targets(
        tmp_path, _PreparingSpy(change=True), _PreparingSpy(change=True), _Spy(change=True), _Spy()
    )
    assert [model is original for model in found] == [True] * 4


def test_a_step_that_is_dropped_leaves_the_aim(tmp_path: Path) -> None:
    def grow(graph: gs.Graph) -> None:
        graph.doc_string = "x" * 1000

    _Spy.seen.clear()
    model = Model.load(parse(TEXT))
    PassManager([_edit(grow), _Spy()]).run(model, CONTEXT, reproducers=tmp_path)
    assert _Spy.seen[0][0].target is model


# ------------------------------------------------------------------- presets of one round


def test_a_preset_of_one_round_is_its_members_one_by_one(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Recipe(Preset):
        """Steps of its own."""

        name: ClassVar[str] = "recipe"
        fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
        rounds: ClassVar[int] = 1

        def members(self) -> tuple[Pass, ...]:
            return (_RenameNodes(), _PreparingSpy(change=True), _Spy(change=True))

    @dataclass(frozen=True)
    class Outer(Recipe):
        """One in the other."""

        name: ClassVar[str] = "outer"

        def members(self) -> tuple[Pass, ...]:
            return (Recipe(), _RenameNodes(prefix="m"))

    for made in (Recipe(), Outer()):
        _Spy.seen.clear()
        result, steps = _run(
            tmp_path, RuntimeProver(latency=False), made, policy=Policy(force=True)
        )
        assert [step.spec for step in steps[:3]] == ["rename", "spy:change=true", "spy:change=true"]
        assert [step.fidelity for step in steps[:3]] == [
            Fidelity.EXACT, Fidelity.LOSSY, Fidelity.LOSSY
        ]  # fmt: skip
        assert all(step.committed for step in steps)
        assert _first_weight(result) == pytest.approx(0.1 * 1.01**2)


def test_a_floor_missed_by_one_member_drops_that_alone(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Recipe(Preset):
        """A good step and a bad one."""

        name: ClassVar[str] = "recipe"
        fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
        rounds: ClassVar[int] = 1

        def members(self) -> tuple[Pass, ...]:
            return (_RenameNodes(), _edit(_double, fidelity=Fidelity.LOSSY))

    policy = Policy(force=True, floors=Floors(min_sqnr_db=40.0))
    result, steps = _run(tmp_path, RuntimeProver(latency=False), Recipe(), policy=policy)
    assert [step.committed for step in steps] == [True, False]
    assert steps[1].floor_missed
    assert [node.op for node in result.graph.nodes] == ["MatMul", "Add", "Relu", "Sigmoid"]


@pytest.mark.parametrize("keeps_unmended", [True, False])
def test_what_training_did_not_mend_is_tried_without_it_where_the_policy_says_so(
    tmp_path: Path, keeps_unmended: bool
) -> None:
    @dataclass(frozen=True)
    class Growing(_MendingSpy):
        """Training, after which the file is larger."""

        def run(self, graph: gs.Graph, context: Context) -> PassResult:
            graph.doc_string = "x" * 1000
            return super().run(graph, context)

    _Spy.seen.clear()
    policy = Policy(keeps_unmended=keeps_unmended)
    model = Model.load(parse(TEXT))
    PassManager([_Spy(), Growing()]).run(model, CONTEXT, policy=policy, reproducers=tmp_path)
    assert len(_Spy.seen) == (3 if keeps_unmended else 2)
