"""`LayerNames`: the names by which people know a layer, which options take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerNames:
    """Which names belong to which layer.

    Attributes:
        others: the names of a layer besides its label, by label: of the node, of its further
            outputs, of its weights.
    """

    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of_layer(self, label: str) -> tuple[str, ...]:
        """All names of a layer, its label first."""
        return (label, *self.others.get(label, ()))

    def all(self, labels: Iterable[str] | None = None) -> Iterator[str]:
        """Every name of the layers `labels`; of all layers without them."""
        for label in self.others if labels is None else labels:
            yield from self.of_layer(label)

    def labels(self, accepts: Callable[[str], bool], labels: Iterable[str]) -> list[str]:
        """Those of `labels` that have a name which `accepts` takes."""
        return [label for label in labels if any(map(accepts, self.of_layer(label)))]
