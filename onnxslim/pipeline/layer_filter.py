"""The options `only` and `skip`: which layers a pass works on, by shell patterns on their names.

    @dataclass(frozen=True)
    class ConvertFp16(FilteredPass):
        only: tuple[str, ...] = only_option("operators to convert")
        skip: tuple[str, ...] = skip_option("operators")

        def requires(self, graph, context):
            self.check_patterns(names_in(graph))      # a pattern without a match is an error

        ... self.selection.accepts(name) ...

The base declares no options itself, so that a pass lists them where its help should show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onnxslim.errors import NotApplicable
from onnxslim.pipeline.options import Assigned, option
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.patterns import matches
from onnxslim.pipeline.suggest import did_you_mean


@dataclass(frozen=True)
class LayerFilter:
    """Which layers a pass works on, by shell patterns on their names.

    Attributes:
        only: patterns of which one must match; (): all layers.
        skip: patterns of which none may match.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def accepts(self, name: str) -> bool:
        """Whether the pass works on the layer `name`."""
        wanted = not self.only or any(matches(name, pattern) for pattern in self.only)
        return wanted and not any(matches(name, pattern) for pattern in self.skip)


def only_option(objects: str = "layers to change") -> Any:
    """The option `only`; `objects` follow "names of the only" in its help."""
    return option((), help=f"names of the only {objects}; `*` and `?` match")


def skip_option(objects: str = "layers") -> Any:
    """The option `skip`; `objects` follow "names of" in its help."""
    return option((), help=f"names of {objects} to leave alone; `*` and `?` match")


class FilteredPass(Pass):
    """A pass with the options `only` and `skip`, which its class declares."""

    only: tuple[str, ...]
    skip: tuple[str, ...]

    @property
    def selection(self) -> LayerFilter:
        """The layers that `only` and `skip` select."""
        return LayerFilter(self.only, self.skip)

    def check_patterns(self, names: Sequence[str], others: Sequence[str] = ()) -> None:
        """Refuse patterns that match no layer; they are almost always typos.

        Args:
            names: of the layers that the options may mean.
            others: names that patterns may match as well, such as layers that the pass declines.

        Raises:
            NotApplicable: naming the option, the pattern, and the closest name.
        """
        for option_name, pattern in self._patterns():
            known = (*names, *others)
            if not any(matches(name, pattern) for name in known):
                raise NotApplicable(
                    f"option `{option_name}` names `{pattern}`, which no layer matches."
                    f"{did_you_mean(pattern.strip('*?'), names)}"
                )

    def _patterns(self) -> Iterator[tuple[str, str]]:
        """The patterns on names of layers, each with its option; those of PATTERN=NUMBER too."""
        for spec in self.options():
            value = getattr(self, spec.field)
            if spec.field in ("only", "skip"):
                yield from ((spec.name, pattern) for pattern in value)
            elif isinstance(spec.constraint, Assigned):
                yield from ((spec.name, spec.constraint.split(entry)[0]) for entry in value)
