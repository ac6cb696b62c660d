"""Parse the text of a pipeline: `simplify,prune-channels:ratio=0.3,quantize-int8:exclude=a+'b:0'`.

    pipeline := item ("," item)* | "resolved" [":from=" "'" pipeline "'"] ("," item)*
    item     := NAME (":" KEY "=" VALUE)*
    VALUE    := "+" | atom ("+" atom)*
    atom     := integer | float | "true" | "false" | "none" | word | "'" text "'"

- A word ends at a space or at one of `, : + = '`, so paths such as `block/conv1.weight` need no
  quotes. Quoted text may hold anything; a quote inside it is written twice: `'it''s'`.
- `+` joins the entries of a list; a single `+` is the empty list. A list of one entry is
  written as that entry.
- `none` is the value of an optional option that is not set; the word itself is `'none'`.
- `resolved` says that timing has decided already: every step is kept, whatever the clock says.
  `from` quotes the pipeline that was given. Files and reports hold their pipeline in this form.
- White space and line breaks may surround items, names, values and the signs between them.

The declared type of the option decides what an atom means: `bits=8` is a number, `exclude=8` names
a tensor. What `spelling.spell` writes parses back to the same value, whatever the type: text that
could be read as something else is quoted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from onnxslim.errors import UsageError
from onnxslim.pipeline import registry
from onnxslim.pipeline.options import ANYTHING, OptionSpec, OptionValue
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.spelling import INFINITE, NUMBER, RESERVED, spell
from onnxslim.pipeline.suggest import did_you_mean

T = TypeVar("T")

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[^\s,:+=']+")
_INTEGER = re.compile(r"-?[0-9]+")
_QUOTED = re.compile(r"'((?:[^']|'')*)'")
_SHOWN_WIDTH = 100
_RESOLVED = "resolved"


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; `str()` of it parses back to an equal pipeline.

    Attributes:
        passes: at least one, unless the pipeline is resolved.
        given: of a resolved pipeline, the text of the pipeline that timing made it of; None: this
            one is not resolved, so timing decides which steps are kept.
    """

    passes: tuple[Pass, ...]
    given: str | None = None

    def __post_init__(self) -> None:
        if not self.passes and not self.is_resolved:
            raise UsageError("The pipeline is empty; name at least one pass, such as `simplify`.")

    def __str__(self) -> str:
        """The passes as text, options at their defaults left out."""
        steps = map(str, self.passes)
        return ",".join(steps) if self.given is None else resolved_text(self.given, steps)

    @property
    def is_resolved(self) -> bool:
        """Whether all that timing could decide is decided."""
        return self.given is not None


def resolved_text(given: str, steps: Iterable[str]) -> str:
    """The resolved pipeline of `steps`, each as a pipeline spells it, made of the text `given`.

    >>> resolved_text("simplify", ["simplify:skip=fold-if"])
    "resolved:from='simplify',simplify:skip=fold-if"
    """
    return ",".join((spell(_RESOLVED, {"from": given} if given else {}), *steps))


def parse_pipeline(text: str) -> Pipeline:
    """The pipeline that `text` spells.

    Raises:
        UsageError: the text breaks the grammar, names an unknown pass or option, or gives a value
            that the option does not take; the message points at the place.
    """
    return _Parser(text).pipeline()


def build_pass(name: str, options: Mapping[str, OptionValue]) -> Pass:
    """The pass called `name`; `options` maps option names, as spelled in a pipeline, to values.

    Raises:
        UsageError: the pass or an option is unknown, or an option does not take its value.
    """
    owner = registry.get(name)
    specs = {spec.name: spec for spec in owner.options()}
    fields: dict[str, OptionValue] = {}
    for key, value in options.items():
        if key not in specs:
            raise UsageError(unknown_option(name, key, specs))
        fields[specs[key].field] = value
    return owner(**fields)


def unknown_option(owner: str, key: str, specs: Mapping[str, OptionSpec]) -> str:
    """The error message for an option `key` that the pass `owner` does not have."""
    if not specs:
        return f"`{owner}` has no option `{key}`; it takes none."
    names = ", ".join(f"`{name}`" for name in specs)
    return f"`{owner}` has no option `{key}`.{did_you_mean(key, specs)} It takes {names}."


# --------------------------------------------------------------------------- parsing


@dataclass(frozen=True)
class _Atom:
    text: str
    is_quoted: bool
    start: int
    end: int

    def read(self, kind: type) -> OptionValue:
        """The value of the atom for an option of the type `kind`."""
        if self.is_quoted or kind is str:
            return self.text
        if self.text in RESERVED:
            return RESERVED[self.text]
        if kind is float and self.text in INFINITE:
            return INFINITE[self.text]
        if NUMBER.fullmatch(self.text):
            return self._number()
        return self.text

    def _number(self) -> int | float:
        if not _INTEGER.fullmatch(self.text):
            number = float(self.text)
            if math.isinf(number):
                raise UsageError(f"`{self.text}` is too large for a number.")
            return number
        try:
            return int(self.text)
        except ValueError:  # Python converts at most 4,300 digits
            raise UsageError(f"A number of {len(self.text):,} digits is too large.") from None


class _Parser:
    """A recursive descent parser of `text`; `at` is the index of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> Pipeline:
        self._skip_space()
        if self.at == len(self.text):
            return Pipeline(())
        given = self._given()
        passes = [self._item()] if given is None else []
        while self._take(","):
            passes.append(self._item())
        if self.at < len(self.text):
            self._fail("Expected `,` before the next pass or `:` before an option.")
        return Pipeline(tuple(passes), given)

    def _given(self) -> str | None:
        """The pipeline that a resolved one was made of; None where the text is not resolved."""
        found = _WORD.match(self.text, self.at)
        if not found or found.group() != _RESOLVED:
            return None
        self._word("a pass name")
        given = ""
        if self._take(":"):
            spec = OptionSpec("from", "from_", str, False, False, "", ANYTHING, "as given")
            _, value = self._option(_RESOLVED, {"from": spec})
            given = str(value)
        return given

    def _item(self) -> Pass:
        name, start, end = self._word("a pass name")
        owner = self._blaming(start, end, lambda: registry.get(name))
        specs = {spec.name: spec for spec in owner.options()}
        fields: dict[str, OptionValue] = {}
        while self._take(":"):
            spec, value = self._option(name, specs)
            if spec.field in fields:
                self._fail(f"Option `{spec.name}` of `{name}` is given twice.")
            fields[spec.field] = value
        return self._blaming(start, self.at, lambda: owner(**fields))

    def _option(
        self, owner: str, specs: Mapping[str, OptionSpec]
    ) -> tuple[OptionSpec, OptionValue]:
        key, start, end = self._word(f"the name of an option of `{owner}`")
        if key not in specs:
            self._fail(unknown_option(owner, key, specs), start, end)
        spec = specs[key]
        self._skip_space()
        if not self._take("="):
            self._fail(_missing(owner, spec), start, end)
        atoms = self._atoms(owner, spec)
        first, last = (atoms[0].start, atoms[-1].end) if atoms else (start, self.at)
        return spec, self._blaming(first, last, lambda: _value(atoms, spec, owner))

    def _atoms(self, owner: str, spec: OptionSpec) -> list[_Atom]:
        self._skip_space()
        if self._take("+"):
            return []
        atoms = [self._atom(owner, spec)]
        while self._take("+"):
            self._skip_space()
            atoms.append(self._atom(owner, spec))
        return atoms

    def _atom(self, owner: str, spec: OptionSpec) -> _Atom:
        start = self.at
        if self.text.startswith("'", start):
            found = _QUOTED.match(self.text, start)
            if not found:
                self._fail("This quote is never closed.", start, len(self.text))
            self.at = found.end()
            atom = _Atom(found.group(1).replace("''", "'"), True, start, self.at)
        else:
            found = NUMBER.match(self.text, start) or _WORD.match(self.text, start)
            if not found:
                self._fail(_missing(owner, spec))
            self.at = found.end()
            atom = _Atom(found.group(), False, start, self.at)
        self._skip_space()
        if self.at < len(self.text) and self.text[self.at] not in ",:+":
            self._fail("Expected `,`, `:` or `+` after a value; quote text that holds other signs.")
        return atom

    # --------------------------------------------------------------- scanning

    def _word(self, what: str) -> tuple[str, int, int]:
        self._skip_space()
        found = _WORD.match(self.text, self.at)
        if not found:
            self._fail(f"Expected {what} here.")
        self.at = found.end()
        self._skip_space()
        return found.group(), found.start(), found.end()

    def _take(self, sign: str) -> bool:
        if not self.text.startswith(sign, self.at):
            return False
        self.at += 1
        return True

    def _skip_space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def _blaming(self, start: int, end: int, action: Callable[[], T]) -> T:
        """The result of `action`; an error of it is raised again with the place in the text."""
        try:
            return action()
        except UsageError as error:
            message = str(error)
        self._fail(message, start, end)

    def _fail(self, message: str, start: int | None = None, end: int | None = None) -> NoReturn:
        start = self.at if start is None else start
        raise UsageError(f"{message}\n{_pointer(self.text, start, end or start + 1)}")


def _missing(owner: str, spec: OptionSpec) -> str:
    example = f"{spec.name}=true" if spec.type is bool else f"{spec.name}=VALUE"
    return (
        f"Option `{spec.name}` of `{owner}` has no value; write `{example}` ({spec.type_name()})."
    )


def _value(atoms: list[_Atom], spec: OptionSpec, owner: str) -> OptionValue:
    if len(atoms) == 1:
        (atom,) = atoms
        if spec.optional and atom.text == "none" and not atom.is_quoted:
            return None
        return spec.check(atom.read(spec.type), owner)
    return spec.check(tuple(atom.read(spec.type) for atom in atoms), owner)


def _pointer(text: str, start: int, end: int) -> str:
    """The line of `text` around `start`, and below it carets under the part up to `end`."""
    begin = text.rfind("\n", 0, start) + 1
    stop = text.find("\n", begin)
    stop = len(text) if stop < 0 else stop
    lead = tail = ""
    if stop - begin > _SHOWN_WIDTH:
        first = max(begin, start - _SHOWN_WIDTH // 2)
        last = min(stop, first + _SHOWN_WIDTH)
        lead, tail = "... " if first > begin else "", " ..." if last < stop else ""
        begin, stop = first, last
    before = lead + text[begin:start]
    carets = "^" * max(1, _columns(text[start : min(end, stop)]))
    line = (lead + text[begin:stop] + tail).replace("\t", " ")
    return f"    {line}\n    {' ' * _columns(before)}{carets}"


def _columns(text: str) -> int:
    """Number of terminal columns that `text` takes."""
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    return len(text) + wide - sum(bool(unicodedata.combining(sign)) for sign in text)
