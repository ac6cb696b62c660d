"""Write `docs/passes/*.md` from docstrings and options of passes, and JSON Schemas.

The schemas are those of a report and of a recipe.

`python docs/build.py` writes; `python docs/build.py --check` fails when a page is not up to date.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
import msgspec

from onnxslim.pipeline import registry
from onnxslim.pipeline.examples import examples_of
from onnxslim.pipeline.passes import Pass, Preset
from onnxslim.pipeline.recipe_schema import recipe_schema
from onnxslim.pipeline.targets import TargetEngine, Trait, targets
from onnxslim.render.json_form import SCHEMA_VERSION, ReportForm

FOLDER = Path(__file__).parent / "passes"
SCHEMA = Path(__file__).with_name("report.schema.json")
RECIPE_SCHEMA = Path(__file__).with_name("recipe.schema.json")


def page(rewrite: type[Pass]) -> str:
    """The page of one pass: docstring sections as headings, options as a table."""
    module = inspect.getmodule(rewrite)
    summary, *rest = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    lines = [f"# {rewrite.name}", "", " ".join(summary.split()), "", "```"]
    for example in examples_of(rewrite):
        lines += [f"# {example.purpose}", example.command]
    lines += ["```", ""]
    lines += _sections("\n\n".join(rest))
    lines += ["## Options", ""]
    options = rewrite.options()
    if options:
        lines += ["| option | type | default | meaning |", "|---|---|---|---|"]
        for spec in options:
            kind = f"{spec.type_name()} {spec.constraint.describe()}".strip()
            lines.append(f"| `{spec.name}` | {kind} | `{_default(spec.default)}` | {spec.help} |")
    else:
        lines.append("None.")
    if issubclass(rewrite, Preset):
        lines += ["", "## Members", ""]
        lines += [f"- [{m.name}]({m.name}.md)" for m in rewrite().members()]
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and value:
        return "+".join(map(str, value))
    return "none" if value in (None, ()) else str(value)


def _sections(text: str) -> list[str]:
    """Headings for lines such as `Rewrite:`, and what is indented under them as it stands."""
    lines: list[str] = []
    block: list[str] = []
    for line in [*text.splitlines(), "End:"]:
        if line and not line[0].isspace() and line.endswith(":"):
            lines += textwrap.dedent("\n".join(block)).strip("\n").splitlines()
            block = []
            lines += ["", f"## {line[:-1]}", ""] if line != "End:" else [""]
        else:
            block.append(line)
    return lines


def target_table() -> str:
    """The page with what each target takes, and how that is known."""
    known = list(targets().values())
    lines = ["# What each target takes", "", "From `onnxslim/pipeline/targets.toml`: y takes it,"]
    lines += ["n does not; *run* was seen with the version named, *read* is from a page or source,"]
    lines += ["*assumed* means that nobody says. [Targets](targets.md) explains what follows.", ""]
    lines += ["| | " + " | ".join(target.name for target in known) + " |"]
    lines += ["|---" * (len(known) + 1) + "|"]
    lines.append("| opset | " + " | ".join(_opsets(target) for target in known) + " |")
    for trait in Trait:
        marks = (f"{'y' if t.takes(trait) else 'n'}, {t.facts[trait].known}" for t in known)
        lines.append(f"| {trait.words} | {' | '.join(marks)} |")
    for target in known:
        lines += ["", f"## {target.name}", "", f"{target.title}.", ""]
        opsets = target.opsets
        lines.append(f"- opset {_opsets(target)}: *{opsets.known}*, {opsets.source}")
        for trait, fact in target.facts.items():
            takes = "" if fact.takes else "no "
            lines.append(f"- {takes}{trait.words}: *{fact.known}*, {fact.source}")
    return "\n".join(lines) + "\n"


def _opsets(target: TargetEngine) -> str:
    return f"{target.opsets.least} to {target.opsets.most}"


def pages() -> dict[Path, str]:
    """Every page by its path, the index included."""
    rows = ["# Passes", "", "| pass | promises | what it does |", "|---|---|---|"]
    found = {Path(__file__).with_name("target_table.md"): target_table()}
    for name in registry.names():
        rewrite = registry.get(name)
        found[FOLDER / f"{name}.md"] = page(rewrite)
        first = inspect.cleandoc(rewrite.__doc__ or "").splitlines()[0]
        rows.append(f"| [{name}]({name}.md) | {rewrite.fidelity.name} | {first} |")
    found[FOLDER / "README.md"] = "\n".join(rows) + "\n"
    return found


def schema() -> dict[str, Any]:
    """The JSON Schema of what `--report run.json` writes."""
    found = msgspec.json.schema(ReportForm)
    definitions = _with_strings_for_infinity(found["$defs"])
    definitions["ReportForm"]["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    definitions["Number"] = {
        "anyOf": [{"type": "number"}, {"enum": ["Infinity", "-Infinity", "NaN"]}]
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Report of onnxslim",
        "$ref": found["$ref"],
        "$defs": definitions,
    }


def _with_strings_for_infinity(schema: Any) -> Any:
    if schema == {"type": "number"}:
        return {"$ref": "#/$defs/Number"}
    if isinstance(schema, dict):
        return {key: _with_strings_for_infinity(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_with_strings_for_infinity(value) for value in schema]
    return schema


@click.command()
@click.option("--check", is_flag=True, help="Only see whether the pages are up to date.")
def main(check: bool) -> None:
    """Write the pages of all passes, and the schemas of a report and of a recipe."""
    wanted = {
        **pages(),
        SCHEMA: json.dumps(schema(), indent=2) + "\n",
        RECIPE_SCHEMA: json.dumps(recipe_schema(), indent=2) + "\n",
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    extra = [path for path in FOLDER.glob("*.md") if path not in wanted]
    if check:
        if stale or extra:
            names = ", ".join(path.name for path in [*stale, *extra])
            click.echo(f"Not up to date: {names}. Run `python docs/build.py`.", err=True)
            sys.exit(1)
        return
    FOLDER.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(wanted[path])
    for path in extra:
        path.unlink()


if __name__ == "__main__":
    main()
