"""The contract of a pass: `Pass`, `Preset`, and the `Context` that a pass is given.

A pass rewrites the graph that it is given and reports what it did. It keeps no state, opens no file
but those that its options name, and prints nothing. Not here: copying, verifying, timing and
committing (see `manager`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from onnxslim.errors import UsageError
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.options import OptionSpec, OptionValue, options_of
from onnxslim.pipeline.policy import Goal
from onnxslim.pipeline.spelling import spell
from onnxslim.pipeline.targets import DEFAULT_TARGET, TargetEngine, Trait, target_of
from onnxslim.records import Fidelity, OutputKind, PassResult
from onnxslim.services.layer_names import LayerNames
from onnxslim.services.progress import Progress

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxslim.io.model import Model
    from onnxslim.services.calibration import Calibration
    from onnxslim.services.evaluator import Evaluator
    from onnxslim.services.stopwatch import Stopwatch
    from onnxslim.services.training import Trainer


PassT = TypeVar("PassT", bound="Pass")


@dataclass(frozen=True)
class Context:
    """The services and limits that passes may use besides the graph.

    Attributes:
        seed: seed of all randomness.
        evaluate: runs constant subgraphs; the pass that folds constants needs it.
        calibration: the samples of the user, and measurements on them; None without samples.
        seeded: the inputs on which outputs are compared where the user gave none; nothing may be
            fitted to them. None where there are none.
        accuracy: measures the accuracy of a model on the evaluation data, in [0, 1]; None without
            such data.
        labelled: the evaluation samples; None without such data, or where it is a metric.
        trainer: lets a model learn from others on the samples of the user; None without samples.
        stopwatch: measures run times on this machine; None where nothing is to be timed.
        floors: limits on what lossy steps may cost, for passes that choose how far to go.
        goal: which of bytes and latency may not get worse, for passes that trade one for the other.
            Set by the manager.
        progress: what is being done: `context.progress.over("rounding", layers, "layers")`.
        why_not_same: holds a second model against a first one that it is to replace losslessly:
            None when it runs and its outputs differ by no more than rounding, else what it does, in
            words to follow "it"; None where nothing is verified. Set by the manager.
        model: the model whose graph is rewritten. Set by the manager.
        reference: the model before the first lossy step: what outputs are judged by, and what a
            model learns from. Set by the manager.
        target: the model whose layers lossy steps reproduce: the reference; what training made of
            it; or, where a lossless step changed the model since, that step's result. Set by the
            manager.
        output_kinds: what the outputs of the model hold, by name; {} where nothing is known of it.
        tokenizer: path of the tokenizer that makes ids of the user's texts; None where none does.
        names: by which options may name layers; filled in by the manager for a pass that names any.
        engine: the engine that the file is for; passes write no form that it does not take. Set by
            the manager.
    """

    seed: int = 0
    evaluate: Evaluator | None = None
    calibration: Calibration | None = None
    seeded: Calibration | None = None
    accuracy: Callable[[Model], float | None] | None = None
    labelled: Calibration | None = None
    trainer: Trainer | None = None
    stopwatch: Stopwatch | None = None
    floors: Floors = field(default_factory=Floors)
    goal: Goal = Goal.BOTH
    progress: Progress = field(default_factory=Progress)
    why_not_same: Callable[[Model, Model], str | None] | None = None
    model: Model | None = None
    reference: Model | None = None
    target: Model | None = None
    output_kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    tokenizer: str | None = None
    names: LayerNames = field(default_factory=LayerNames)
    engine: TargetEngine = field(default_factory=lambda: target_of(DEFAULT_TARGET))

    @property
    def trials(self) -> Calibration | None:
        """Samples that show what a trial does to the outputs: the user's, else the seeded ones."""
        return self.calibration or self.seeded


@dataclass(frozen=True)
class Pass:
    """Base of all passes: a frozen dataclass whose fields are its options.

    `str(p)` is its spelling in a pipeline, and parses back to an equal pass. Times differ from run
    to run: a pass that decides by them says in `PassResult.resolved` how to spell what it decided.

    Attributes:
        name: verb and object in kebab case.
        fidelity: what the pass promises about outputs.
        idempotent: whether a second run changes nothing.
        settles: whether the pass, if it is lossy, is given weights as constants where operators
            read them; not so where it stores them behind such operators (see `execution`).
        changes_weights: whether the pass is for all weights of a model, so that the report says
            what it left as it was (see `untouched`).
        names_layers: whether the options `only` and `skip` are names of layers or nodes.
        prepares: whether the pass pays only through later passes (as pruned weights do once
            they are packed); the manager then judges it together with them.
        mends: whether the pass brings back what lossy steps right before it cost; the manager
            then judges them together with it first.
        examples: pipelines with the pass -> what each does; {}: plain ones are made up.
        is_final: whether the pass goes last in a pipeline and is kept whatever it costs, as the
            file is of no use without it.
        strengths: the option that sets how far the pass goes -> its values, from weak to strong, at
            which sensitivity is measured; {} without such an option.
        scale: the options that set how far the pass goes, of which the last has a default -> the
            values at which it does next to nothing and as much as makes sense; {} where a search
            has no strength to choose.
        strengths_of_layers: options that say how far single layers go.
    """

    name: ClassVar[str]
    fidelity: ClassVar[Fidelity]
    idempotent: ClassVar[bool] = True
    settles: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = False
    names_layers: ClassVar[bool] = False
    prepares: ClassVar[bool] = False
    mends: ClassVar[bool] = False
    is_final: ClassVar[bool] = False
    examples: ClassVar[Mapping[str, str]] = {}
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {}
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {}
    strengths_of_layers: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Check every option against its declaration."""
        for spec in self.options():
            value = spec.check(getattr(self, spec.field), self.name)
            object.__setattr__(self, spec.field, value)

    @classmethod
    def options(cls) -> tuple[OptionSpec, ...]:
        """The options, in the order of their declaration."""
        return options_of(cls)

    def given(self, *names: str) -> tuple[str, ...]:
        """The named options that have a value; none of them may have a default."""
        fields_ = {spec.name: spec.field for spec in self.options()}
        return tuple(name for name in names if getattr(self, fields_[name]) not in (None, ()))

    def check_at_most_one(self, *names: str) -> None:
        """Refuse more than one of the named options, which exclude each other.

        Raises:
            UsageError: naming the options that are given.
        """
        given = self.given(*names)
        if len(given) > 1:
            raise UsageError(
                f"`{self.name}` takes one of {', '.join(names[:-1])} and {names[-1]}; got "
                f"{' and '.join(given)}."
            )

    def needs_calibration(self) -> str | None:
        """What the pass needs calibration samples for, as its options stand; None: it does not.

        The words follow "needs calibration samples", and name what else can be chosen, if anything.
        A run without samples is refused before any work.
        """
        return None

    @property
    def trains(self) -> bool:
        """Whether the pass takes the extra `train`; a run without it is refused before any work."""
        return False

    def writes(self) -> tuple[Trait, ...]:
        """What the pass writes, as its options stand, and cannot do without.

        It declines where the engine that the file is for takes one of them neither as it is nor
        replaced.
        """
        return ()

    @property
    def engine(self) -> str | None:
        """The engine that the pass makes files for; None: it makes them for any."""
        return None

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Raise `NotApplicable` when the pass cannot do anything on this graph."""

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Rewrite `graph` in place; it is valid before and must be valid after."""
        raise NotImplementedError

    def loss_bound(self) -> str | None:
        """Why the loss is small whatever the inputs are; None: only real data can tell.

        A lossy pass without such a reason is named at the end of a run that had no real data.
        """
        return None

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """Names that the option `only` can match on this graph; () without that option."""
        return ()

    def members(self) -> tuple[Pass, ...]:
        """The passes of a preset; a plain pass is its only member."""
        return (self,)

    def unrolled(self) -> tuple[Pass, ...]:
        """Passes that one run of this one runs in turn; most are their own only stage."""
        return (self,)

    def softened(self: PassT, share: float) -> PassT | None:
        """This pass with less of its strength, for a search under floors.

        Args:
            share: of the way from doing next to nothing to what this pass does, in (0, 1).

        Returns:
            A weaker pass; None where there is none, or layers have strengths of their own.
        """
        name = next(iter(self.given(*self.scale)), None)
        if name is None or self._sets(self.strengths_of_layers):
            return None
        spec = next(spec for spec in self.options() if spec.name == name)
        own, (softest, _) = getattr(self, spec.field), self.scale[name]
        value = softest + (own - softest) * share
        if isinstance(own, int):  # the next whole number on the soft side
            value = math.ceil(value) if softest > own else math.floor(value)
        changed: Any = {spec.field: value}
        return None if value == own else replace(self, **changed)

    def hardest(self: PassT) -> PassT | None:
        """This pass with as much strength as makes sense; None where the user gave the strength."""
        if not self.scale or self._sets((*self.scale, *self.strengths_of_layers)):
            return None
        name, (_, hardest) = list(self.scale.items())[-1]
        changed: Any = {spec.field: hardest for spec in self.options() if spec.name == name}
        return replace(self, **changed)

    def _sets(self, names: Iterable[str]) -> bool:
        """Whether one of the named options differs from its default."""
        return not {spec.name for spec, _ in self.set_options()}.isdisjoint(names)

    def leaving_out(self, sites: Mapping[str, Sequence[str]]) -> Pass | None:
        """This pass without the rewrites at some sites; None where it cannot leave any out.

        Args:
            sites: names of sites (see `Change.site`) by the name of the member.
        """
        return None

    def set_options(self) -> Iterator[tuple[OptionSpec, Any]]:
        """The options whose values differ from their defaults."""
        for spec in self.options():
            value = getattr(self, spec.field)
            if value != spec.default or type(value) is not type(spec.default):
                yield spec, value

    def __str__(self) -> str:
        """The spelling in a pipeline; options at their defaults are left out."""
        return spell(self.name, {spec.name: value for spec, value in self.set_options()})


def check_calibration(passes: Iterable[Pass]) -> None:
    """Refuse passes that can do nothing in a run without calibration samples.

    Raises:
        UsageError: naming the first of them, and what to give.
    """
    for item in passes:
        for stage in unrolled_members(item):
            purpose = stage.needs_calibration()
            if purpose is not None:
                raise UsageError(
                    f"`{item}` needs calibration samples {purpose}. Give --calib FILE.npz, a "
                    "folder, or module:function (in Python: calibration=...)."
                )


def unrolled_members(item: Pass) -> Iterator[Pass]:
    """The stages of all members of a pass."""
    return (stage for member in item.members() for stage in member.unrolled())


@dataclass(frozen=True)
class Preset(Pass):
    """A name for several passes.

    Attributes:
        rounds: the largest number of rounds. The members run in rounds, as one step, until none of
            them changes anything. With 1, each member runs once and is a step of its own.
    """

    name: ClassVar[str]
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE
    rounds: ClassVar[int] = 20

    def members(self) -> tuple[Pass, ...]:
        """The passes in the order in which a round runs them."""
        raise NotImplementedError
