"""All passes by name: the built-in ones, and those of other distributions.

Built-in passes are listed in the table of `onnxslim.passes`. Another distribution adds its passes
by the entry-point group `onnxslim.passes`:

    [project.entry-points."onnxslim.passes"]
    fuse-my-op = "my_package.fuse_my_op:FuseMyOp"

A module is imported when its pass is first used. A pass that cannot be loaded is reported in one
sentence, and the other passes stay usable.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import re
from dataclasses import dataclass

from onnxslim.errors import UsageError, is_out_of_memory
from onnxslim.pipeline.other_words import pipeline_for
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.suggest import did_you_mean
from onnxslim.records import Fidelity

GROUP = "onnxslim.passes"
"""The entry-point group of other distributions, and the package with the built-in table."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_BUILT_IN = "onnxslim itself"


@dataclass(frozen=True)
class _Entry:
    """A registered name.

    Attributes:
        target: where the pass is defined, `module:Class`.
        owner: the distribution that registered it, in words.
    """

    name: str
    target: str
    owner: str


@dataclass(frozen=True)
class Description:
    """A registered pass, for lists and help.

    Attributes:
        owner: the distribution that registered the pass, in words.
        target: where the pass is defined, `module:Class`.
        summary: the first line of its docstring.
        problem: why the pass cannot be used; None when it can.
    """

    name: str
    owner: str
    target: str
    fidelity: Fidelity | None = None
    is_preset: bool = False
    summary: str = ""
    problem: str | None = None


def names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_entries()))


def get(name: str) -> type[Pass]:
    """The class of the pass called `name`.

    Raises:
        UsageError: no pass has this name, two distributions claim it, or the pass is broken.
    """
    entries = _entries().get(name, ())
    if not entries:
        known = pipeline_for(name)
        hint = f" Here it is called `{known}`." if known else did_you_mean(name, _entries())
        raise UsageError(f"There is no pass `{name}`.{hint} `onnxslim passes` lists all.")
    if len(entries) > 1:
        owners = " and ".join(f"{entry.owner} (`{entry.target}`)" for entry in entries)
        raise UsageError(
            f"The pass name `{name}` is taken twice, by {owners}. Uninstall one of them."
        )
    return _load(entries[0])


def describe() -> tuple[Description, ...]:
    """Descriptions of all registered passes, sorted by name; imports every pass."""
    return tuple(_describe(name) for name in names())


def _describe(name: str) -> Description:
    entry = _entries()[name][0]
    try:
        owner = get(name)
    except UsageError as error:
        return Description(name, entry.owner, entry.target, problem=str(error))
    summary = (owner.__doc__ or "").strip().partition("\n")[0]
    # a preset has members other than itself
    is_preset = owner.members is not Pass.members
    return Description(name, entry.owner, entry.target, owner.fidelity, is_preset, summary)


@functools.cache
def _entries() -> dict[str, tuple[_Entry, ...]]:
    found: dict[str, tuple[_Entry, ...]] = {}
    # imported by name: the core depends on no concrete pass
    table: dict[str, str] = importlib.import_module(GROUP).PASSES
    for name, target in table.items():
        found[name] = (_Entry(name, f"{GROUP}.{target}", _BUILT_IN),)
    for point in importlib.metadata.entry_points(group=GROUP):
        dist = point.dist
        owner = f"the distribution `{dist.name} {dist.version}`" if dist else "an entry point"
        entry = _Entry(point.name, f"{point.module}:{point.attr}", owner)
        others = found.get(point.name, ())
        if entry not in others:
            found[point.name] = (*others, entry)
    return found


@functools.cache
def _load(entry: _Entry) -> type[Pass]:
    module, _, attribute = entry.target.partition(":")
    try:
        owner = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of another distribution may fail in any way
        if is_out_of_memory(error):
            raise MemoryError from error
        raise UsageError(
            f"The pass `{entry.name}` of {entry.owner} cannot be loaded from `{entry.target}`: "
            f"{type(error).__name__}: {error}"
        ) from error
    fault = _fault(owner, entry.name)
    if fault:
        raise UsageError(
            f"The pass `{entry.name}` of {entry.owner} cannot be used: `{entry.target}` {fault}."
        )
    loaded: type[Pass] = owner
    return loaded


def _fault(owner: object, name: str) -> str | None:
    """How `owner` breaks the contract of a pass class called `name`; None when it does not."""
    if not isinstance(owner, type) or not issubclass(owner, Pass):
        return "is not a subclass of `Pass`"
    parameters = vars(owner).get("__dataclass_params__")
    if parameters is None or not dataclasses.is_dataclass(owner) or not parameters.frozen:
        return "is not a frozen dataclass"
    if getattr(owner, "name", None) != name:
        return f"calls itself `{getattr(owner, 'name', None)}`"
    if not _NAME.fullmatch(name):
        return "has a name that is not in kebab case, such as `fuse-casts`"
    if not isinstance(getattr(owner, "fidelity", None), Fidelity):
        return "does not declare its `fidelity`"
    return _option_fault(owner)


def _option_fault(owner: type[Pass]) -> str | None:
    try:
        specs = owner.options()
    except (TypeError, NameError) as error:
        return f"declares an option wrongly ({error})"
    plain = {item.name for item in dataclasses.fields(owner)} - {spec.field for spec in specs}
    if plain:
        return f"has the field `{min(plain)}`, which is not declared by `option(...)`"
    return None
