"""What a user says of outputs: `NAME=classes`, in place of what the graph says.

Owns: the spelling, and which outputs may be called what. Not here: what the graph says (see
`analysis.output_kinds`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnxslim.errors import UsageError
from onnxslim.pipeline.suggest import did_you_mean
from onnxslim.records import OutputKind

NAMED_KINDS = tuple(kind for kind in OutputKind if kind is not OutputKind.DISCRETE)


def parse_kinds(texts: Iterable[str]) -> dict[str, OutputKind]:
    """Kinds by output name from texts such as `NAME=classes`; a name may hold `=`.

    Raises:
        UsageError: a text has another form, or a name is given twice.
    """
    kinds: dict[str, OutputKind] = {}
    for text in texts:
        name, _, word = text.rpartition("=")
        if not name or word not in NAMED_KINDS:
            raise UsageError(
                f"--output-kind must be NAME=KIND, where KIND is one of {', '.join(NAMED_KINDS)}; "
                f"got {text!r}."
            )
        if name in kinds:
            raise UsageError(f"--output-kind gives the kind of `{name}` twice.")
        kinds[name] = OutputKind(word)
    return kinds


def with_named(
    found: Mapping[str, OutputKind], named: Mapping[str, OutputKind]
) -> Mapping[str, OutputKind]:
    """The kinds that were found, with those that a user named in their place.

    Raises:
        UsageError: a name is no output, or an output that does not hold floats.
    """
    for name, kind in named.items():
        if name not in found:
            outputs = ", ".join(f"`{output}`" for output in found)
            raise UsageError(
                f"--output-kind names `{name}`, which is no output.{did_you_mean(name, found)} The "
                f"outputs are {outputs}."
            )
        if found[name] is OutputKind.DISCRETE and kind is not OutputKind.DISCRETE:
            raise UsageError(
                f"Output `{name}` holds no floats: its values are equal or not, and --output-kind "
                "cannot make them anything else."
            )
    return {**found, **named}
