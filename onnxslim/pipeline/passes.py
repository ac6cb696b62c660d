"""What a pass is: `Pass`, what it gets (`Context`), what it returns (`PassResult`).

The manager owns copying, verifying, committing, timing and blaming; a pass only rewrites the graph
that it is given and says what it did. It keeps no state, touches no file, prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from onnxslim.errors import UsageError
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.options import OptionSpec, OptionValue, options_of
from onnxslim.pipeline.policy import Goal
from onnxslim.pipeline.spelling import spell
from onnxslim.records import Fidelity, PassResult

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxslim.io.model import Model
    from onnxslim.services.calibration import Calibration
    from onnxslim.services.evaluator import Evaluator
    from onnxslim.services.stopwatch import Stopwatch


@dataclass(frozen=True)
class Context:
    """What passes may use besides the graph.

    Attributes:
        seed: of all randomness.
        evaluate: runs constant subgraphs; the pass that folds constants needs it.
        calibration: the user's samples, and what can be measured on them; None without samples.
        accuracy: of a model on the user's evaluation data, in [0, 1]; None without such data.
        stopwatch: run times on this machine; None where nothing is to be timed.
        floors: what the user will not go below, for passes that choose how far to go.
        goal: which of bytes and latency may not get worse, for passes that choose between the
            two. Set by the manager.
        progress: told in words what is going on.
        model: the model whose graph is being rewritten; set by the manager.
        reference: the model before the first lossy step: what lossy steps aim at. Set by the
            manager.
    """

    seed: int = 0
    evaluate: Evaluator | None = None
    calibration: Calibration | None = None
    accuracy: Callable[[Model], float | None] | None = None
    stopwatch: Stopwatch | None = None
    floors: Floors = field(default_factory=Floors)
    goal: Goal = Goal.BOTH
    progress: Callable[[str], None] | None = None
    model: Model | None = None
    reference: Model | None = None

    def tell(self, text: str) -> None:
        """Say in words what is going on, to whoever listens."""
        if self.progress is not None:
            self.progress(text)


@dataclass(frozen=True)
class Pass:
    """Base of all passes: a frozen dataclass whose fields are its options.

    `str(p)` is its spelling in a pipeline, and parses back to an equal pass.

    Attributes:
        name: verb-object in kebab case.
        fidelity: what it promises of outputs.
        idempotent: whether a second run changes nothing.
        prepares: it pays only through passes that follow (pruned weights once packed): the
            manager judges it together with them.
        strengths: the option that says how far it goes, with values from weak to strong at which
            sensitivity is measured; {} where there is none.
    """

    name: ClassVar[str]
    fidelity: ClassVar[Fidelity]
    idempotent: ClassVar[bool] = True
    prepares: ClassVar[bool] = False
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {}

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
        """Those of the named options, all without a default, that have a value."""
        fields_ = {spec.name: spec.field for spec in self.options()}
        return tuple(name for name in names if getattr(self, fields_[name]) not in (None, ()))

    def check_at_most_one(self, *names: str) -> None:
        """Refuse more than one of the named options, which exclude each other.

        Raises:
            UsageError: naming those that are given.
        """
        given = self.given(*names)
        if len(given) > 1:
            raise UsageError(
                f"`{self.name}` takes one of {', '.join(names[:-1])} and {names[-1]}; got "
                f"{' and '.join(given)}."
            )

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Raise `NotApplicable` when the pass cannot do anything on this graph."""

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Rewrite `graph` in place; it is valid before and must be valid after."""
        raise NotImplementedError

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """What the option `only` can name on this graph; () for a pass without that option."""
        return ()

    def members(self) -> tuple[Pass, ...]:
        """The passes of a preset; a plain pass is its only member."""
        return (self,)

    def set_options(self) -> Iterator[tuple[OptionSpec, Any]]:
        """The options whose values differ from their defaults."""
        for spec in self.options():
            value = getattr(self, spec.field)
            if value != spec.default or type(value) is not type(spec.default):
                yield spec, value

    def __str__(self) -> str:
        """The spelling in a pipeline; options at their defaults are left out."""
        return spell(self.name, {spec.name: value for spec, value in self.set_options()})


@dataclass(frozen=True)
class Preset(Pass):
    """A name for several passes.

    Attributes:
        rounds: they run in up to so many rounds, until none of them changes anything, as one step.
            With 1, each runs once and is a step of its own.
    """

    name: ClassVar[str]
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE
    rounds: ClassVar[int] = 20

    def members(self) -> tuple[Pass, ...]:
        """The passes, in the order in which a round runs them."""
        raise NotImplementedError


def field_names(owner: type[Pass]) -> tuple[str, ...]:
    """All dataclass fields of a pass class; every one must be an option."""
    return tuple(field.name for field in fields(owner))
