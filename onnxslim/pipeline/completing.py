"""Complete the text of a pipeline while it is typed."""

from __future__ import annotations

from collections.abc import Iterator

from onnxslim.errors import UsageError
from onnxslim.pipeline import registry


def continuations(incomplete: str) -> list[str]:
    """What `incomplete` can become: names of passes, of the options of a pass, and their words."""
    before, comma, item = incomplete.rpartition(",")
    return [f"{before}{comma}{text}" for text in _items(item)]


def _items(item: str) -> Iterator[str]:
    name, colon, _ = item.partition(":")
    if not colon:
        yield from (known for known in registry.names() if known.startswith(item))
        return
    try:
        specs = registry.get(name).options()
    except UsageError:
        return
    before, _, last = item.rpartition(":")
    key, sign, value = last.partition("=")
    if not sign:
        yield from (f"{before}:{s.name}=" for s in specs if s.name.startswith(key))
        return
    for spec in specs:
        if spec.name == key:
            words = getattr(spec.constraint, "choices", ())
            words = ("true", "false") if spec.type is bool else words
            yield from (f"{before}:{key}={word}" for word in words if word.startswith(value))
