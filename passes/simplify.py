"""Make the graph smaller by every rewrite that keeps what it computes.

Rewrite:
    The members run in the order of `MEMBERS`, in rounds, until a round changes nothing. Local
    functions are opened first, so that all passes see what is in them. Constants are folded and
    dead branches removed next, so that rewrites see only the operators that remain. Data movement
    (Reshape, Transpose, Slice, Concat) is merged before arithmetic goes into weights, since it
    stands between a Conv and the arithmetic behind it. Duplicates are merged last, since the other
    passes create equal nodes and equal weights.

Why it is correct:
    Each member is correct; see its own page.

Declines when:
    1. A member is named in `skip`.
    2. A member declines; its own page says when.

Fidelity:
    CLOSE. Merging a BatchNormalization into a weight rounds. Without the members that do (`skip`)
    the report shows the fidelity that was in fact reached.

Reference:
    Rewriting to a fixed point under a fixed order of rules is the classical pass pipeline of a
    compiler: A. W. Appel, Modern Compiler Implementation (1998), chapter 17.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from onnxslim.errors import UsageError
from onnxslim.pipeline import registry
from onnxslim.pipeline.options import OptionValue, option
from onnxslim.pipeline.passes import Pass, Preset
from onnxslim.pipeline.patterns import literal
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.pipeline.suggest import did_you_mean
from onnxslim.records import Fidelity

MEMBERS = (
    "inline-functions",
    "fold-constants",
    "fold-if",
    "eliminate-identity",
    "fold-shapes",
    "fuse-casts",
    "fuse-reshapes",
    "fuse-transposes",
    "fuse-slices",
    "fuse-concats",
    "fuse-quantization",
    "fuse-pad",
    "fuse-activations",  # before fuse-affine, which absorbs the factors that identify an activation
    "fuse-rotary",
    "fuse-attention",
    "fuse-affine",
    "fuse-matmul-add",
    "fuse-reductions",
    "convert-residual-sums",  # behind all that look for an Add
    "dedup-constants",
    "dedup-nodes",
    "eliminate-dead",
    "strip-metadata",
)

_AS_MEMBERS: Mapping[str, Mapping[str, OptionValue]] = {
    "fuse-attention": {"raises_opset": False},
    "fuse-rotary": {"raises_opset": False},
}
"""What a member does otherwise than where it is asked for by name."""


@dataclass(frozen=True)
class Simplify(Preset):
    """Make the graph smaller by every rewrite that keeps what it computes."""

    name: ClassVar[str] = "simplify"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify": "everything, in rounds until nothing changes; the default",
        "simplify:skip=fuse-affine+fold-if": "everything but two of its passes",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    skip: tuple[str, ...] = option(
        (),
        help="passes to leave out, such as fuse-affine+fold-if, or single rewrites of a pass, as "
        "'fuse-affine=NODE', by the name of the node, its weight or its output; `*` and `?` match",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for entry in self.skip:
            name, sign, _ = entry.partition("=")
            if name not in MEMBERS:
                raise UsageError(
                    f"Option `skip` of `simplify` names `{name}`, which is none of its passes."
                    f"{did_you_mean(name, MEMBERS)} They are {', '.join(MEMBERS)}."
                )
            if sign and not issubclass(registry.get(name), RewritePass):
                raise UsageError(
                    f"Option `skip` of `simplify` names one rewrite of `{name}`, which can only be "
                    "left out as a whole."
                )
        if set(self.skip) >= set(MEMBERS):
            raise UsageError("Option `skip` of `simplify` leaves no pass to run.")

    def members(self) -> tuple[Pass, ...]:
        """The passes that are not skipped, in the order of a round."""
        return tuple(
            registry.get(name)(**self._options(name)) for name in MEMBERS if name not in self.skip
        )

    def leaving_out(self, sites: Mapping[str, Sequence[str]]) -> Simplify:
        """See `Pass.leaving_out`."""
        entries: list[str] = []
        for name, nodes in sites.items():
            is_divisible = issubclass(registry.get(name), RewritePass)
            entries += [f"{name}={literal(node)}" for node in nodes] if is_divisible else [name]
        return replace(self, skip=(*self.skip, *entries))

    def _options(self, member: str) -> dict[str, OptionValue]:
        parts = (entry.partition("=") for entry in self.skip)
        sites = tuple(node for name, sign, node in parts if sign and name == member)
        options: dict[str, OptionValue] = {"skip": sites} if sites else {}
        return {**options, **_AS_MEMBERS.get(member, {})}
