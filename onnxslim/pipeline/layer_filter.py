"""The options `only` and `skip`: which layers a pass works on, by shell patterns on their names.

    @dataclass(frozen=True)
    class ConvertFp16(FilteredPass):
        only: tuple[str, ...] = only_option("operators to convert")
        skip: tuple[str, ...] = skip_option("operators")

        def requires(self, graph, context):
            self.check_patterns(context, labels)             # a pattern without a match is an error

        ... self.selection(context).accepts(label) ...

A layer has several names: its label, which is its output, the name of its node, and those of its
weights (see `analysis.layer_names`). A pattern may match any of them. The base declares no options
itself, so that a pass lists them where its help should show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import onnx_graphsurgeon as gs

from onnxslim.analysis.layer_names import layer_names
from onnxslim.errors import UsageError
from onnxslim.pipeline.options import LayerValue, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.patterns import matches
from onnxslim.pipeline.suggest import did_you_mean
from onnxslim.services.layer_names import LayerNames

_EXAMPLES = 3
_BY_NAME = "by the name of the node, its weight or its output; `*` and `?` match"


@dataclass(frozen=True)
class LayerFilter:
    """Which layers a pass works on, by shell patterns on their names.

    Attributes:
        only: patterns of which one must match; (): all layers.
        skip: patterns of which none may match.
        names: the names of each layer besides its label.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    names: LayerNames = field(default_factory=LayerNames)

    def accepts(self, label: str) -> bool:
        """Whether the pass works on the layer `label`."""
        is_wanted = not self.only or self._has_match(label, self.only)
        return is_wanted and not self._has_match(label, self.skip)

    def _has_match(self, label: str, patterns: tuple[str, ...]) -> bool:
        if not patterns:
            return False
        names = self.names.of_layer(label)
        return any(matches(name, pattern) for pattern in patterns for name in names)


def only_option(objects: str = "layers to change") -> Any:
    """The option `only`; `objects` follow "the only" in its help."""
    return option((), help=f"the only {objects}, {_BY_NAME}")


def skip_option(objects: str = "layers") -> Any:
    """The option `skip`; `objects` begin its help."""
    return option((), help=f"{objects} to leave alone, {_BY_NAME}")


class FilteredPass(Pass):
    """A pass with the options `only` and `skip`, which its class declares."""

    names_layers: ClassVar[bool] = True

    only: tuple[str, ...]
    skip: tuple[str, ...]

    def selection(self, context: Context) -> LayerFilter:
        """The layers that `only` and `skip` select."""
        return LayerFilter(self.only, self.skip, context.names)

    def check_patterns(
        self, context: Context, labels: Sequence[str], others: Sequence[str] = ()
    ) -> None:
        """Refuse patterns that match no layer; they are almost always typos.

        Args:
            context: with the names of layers.
            labels: of the layers that the pass works on.
            others: labels that patterns may match as well, such as layers that the pass declines.

        Raises:
            UsageError: naming the option, the pattern, and the closest names.
        """
        for option_name, pattern in layer_patterns(self):
            is_match = partial(matches, pattern=pattern)
            known = (*labels, *others)
            if any(map(is_match, context.names.all(known))):
                continue
            is_there = any(map(is_match, context.names.all()))
            if is_there and option_name == "skip":
                continue  # the pass leaves it alone anyway
            why = _no_match(self, option_name, pattern)
            if is_there:
                why = (
                    f"Option `{option_name}` of `{self.name}` names `{pattern}`, which the pass "
                    "does not work on."
                )
            raise UsageError(why + _suggestion(pattern, list(context.names.all(labels)), labels))


def check_named(step: Pass, *graphs: gs.Graph) -> None:
    """Refuse patterns of a step, or of its members, that match no name in any of `graphs`.

    The members of a preset may name what other members make, so the graph after them counts too.

    Raises:
        UsageError: naming the option, the pattern, and the closest names.
    """
    named = [(item, found) for item in step.members() if (found := list(layer_patterns(item)))]
    if not named:
        return
    tables = [layer_names(graph) for graph in graphs]
    known = [name for table in tables for name in table.all()]
    for item, patterns in named:
        for option_name, pattern in patterns:
            if not any(matches(name, pattern) for name in known):
                raise UsageError(
                    _no_match(item, option_name, pattern) + _meant(item, pattern, graphs, tables)
                )


def _meant(
    item: Pass, pattern: str, graphs: Sequence[gs.Graph], tables: Sequence[LayerNames]
) -> str:
    """The names that a pattern may have been meant for: of what the pass works on, if known."""
    targets = [item.targets(graph) for graph in graphs]
    if not any(targets):
        targets = [tuple(table.others) for table in tables]
    names = [name for table, own in zip(tables, targets, strict=True) for name in table.all(own)]
    labels = dict.fromkeys(label for own in targets for label in own)
    return _suggestion(pattern, names, list(labels))


def _no_match(item: Pass, option_name: str, pattern: str) -> str:
    return (
        f"Option `{option_name}` of `{item.name}` names `{pattern}`, which no layer of the model "
        "matches at this step."
    )


def layer_patterns(item: Pass) -> Iterator[tuple[str, str]]:
    """The patterns on names of layers in the options of a pass, each with its option."""
    if not item.names_layers:
        return
    for spec in item.options():
        value = getattr(item, spec.field)
        if spec.field in ("only", "skip", "freeze"):
            yield from ((spec.name, pattern) for pattern in value)
        elif isinstance(spec.constraint, LayerValue):
            yield from ((spec.name, spec.constraint.layer(entry)) for entry in value)


def ambiguities(item: FilteredPass, names: LayerNames, labels: Sequence[str]) -> Iterator[str]:
    """For each name in an option that is the name of several layers: which layers are meant."""
    for option_name, pattern in layer_patterns(item):
        meant = names.labels(pattern.__eq__, labels)
        if len(meant) > 1:
            shown = ", ".join(f"`{label}`" for label in meant[:_EXAMPLES])
            more = f" and {len(meant) - _EXAMPLES} more" if len(meant) > _EXAMPLES else ""
            yield (
                f"`{item.name}`: {option_name} names `{pattern}`, which {len(meant)} layers have; "
                f"all are meant: {shown}{more}"
            )


def _suggestion(pattern: str, names: Sequence[str], labels: Sequence[str]) -> str:
    found = did_you_mean(pattern.strip("*?"), names, most=_EXAMPLES)
    if found or not labels:
        return found
    shown = ", ".join(f"`{label}`" for label in labels[:_EXAMPLES])
    more = ", ..." if len(labels) > _EXAMPLES else ""
    return f" Its layers are {shown}{more}."
