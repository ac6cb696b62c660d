"""`onnxslim passes [NAME]`: the list of passes, or the page of one."""

from __future__ import annotations

import inspect
import sys

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import PipelineText
from onnxslim.commands.console import paper, say
from onnxslim.errors import UsageError
from onnxslim.pipeline.options import OptionSpec
from onnxslim.pipeline.passes import Pass
from onnxslim.records import Fidelity

PROMISES = {
    Fidelity.EXACT: "EXACT: outputs keep every bit",
    Fidelity.CLOSE: "CLOSE: outputs differ by rounding only",
    Fidelity.LOSSY: "LOSSY: outputs move; their error is measured and held against the floors",
}


@click.command("passes", short_help=COMMANDS["passes"])
@click.argument("name", type=PipelineText(), required=False)
def command(name: str | None) -> None:
    """List all passes, or show the page of the pass NAME with its options."""
    say(_list() if name is None else page(name))


def _list() -> str:
    from onnxslim.pipeline import registry
    from onnxslim.render.tables import FigureTable

    grid = FigureTable(("pass", "promises", "what it does"), text_columns=frozenset({1, 2}))
    problems = []
    for found in registry.describe():
        if found.problem is not None or found.fidelity is None:
            grid.add(found.name, "", "cannot be used, see below")
            problems.append(found.problem or "")
            continue
        summary = f"(preset) {found.summary}" if found.is_preset else found.summary
        grid.add(found.name, found.fidelity.name, summary)
    promises = "\n".join(f"{promise}." for promise in PROMISES.values())
    hint = "`onnxslim passes NAME` shows the options of one pass."
    return "\n\n".join((grid.render(paper()), *problems, promises, hint))


def page(name: str) -> str:
    """The page of the pass `name`: docstring of its module, members, promise, options.

    Raises:
        UsageError: no pass has this name.
    """
    from onnxslim.pipeline import registry
    from onnxslim.render.tables import reflowed, wrapped

    owner = registry.get(name)
    title = f"{name}\n{'=' * len(name)}"
    blocks = [title, _examples(owner), reflowed(_page_text(owner), paper())]
    if owner.members is not Pass.members:
        try:
            members = ", ".join(str(member) for member in owner().members())
        except UsageError as error:
            members = str(error)
        blocks.append(wrapped(f"Members, in this order:\n    {members}", paper()))
    blocks.append(f"Promise:\n    {PROMISES[owner.fidelity]}.")
    blocks.append(_options(owner))
    return "\n\n".join(blocks)


def _examples(owner: type[Pass]) -> str:
    from onnxslim.pipeline.examples import examples_of

    lines = [line for item in examples_of(owner) for line in (f"# {item.purpose}", item.command)]
    return "Examples:\n" + "\n".join(f"    {line}" for line in lines)


def _page_text(owner: type[Pass]) -> str:
    module = sys.modules[owner.__module__]
    return inspect.cleandoc(module.__doc__ or owner.__doc__ or "")


def _options(owner: type[Pass]) -> str:
    from onnxslim.render.tables import FigureTable

    specs = owner.options()
    if not specs:
        return "Options:\n    none"
    grid = FigureTable(
        ("option", "type and range", "default", "help"), text_columns=frozenset({1, 2, 3})
    )
    for spec in specs:
        grid.add(spec.name, _type_and_range(spec), _default(spec), spec.help)
    return "Options:\n" + grid.render(paper())


def _type_and_range(spec: OptionSpec) -> str:
    optional = ", or none" if spec.optional else ""
    return f"{spec.type_name()} {spec.constraint.describe()}".strip() + optional


def _default(spec: OptionSpec) -> str:
    from onnxslim.pipeline.spelling import spell

    if spec.default == ():
        return "empty"
    return spell("", {spec.name: spec.default}).partition("=")[2]
