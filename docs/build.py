"""Write `docs/passes/*.md` from the passes' own docstrings and options.

`python docs/build.py` writes; `python docs/build.py --check` fails when a page is not up to date.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path

import click

from onnxslim.pipeline import registry
from onnxslim.pipeline.passes import Pass, Preset

FOLDER = Path(__file__).parent / "passes"


def page(rewrite: type[Pass]) -> str:
    """The page of one pass: docstring sections as headings, options as a table."""
    module = inspect.getmodule(rewrite)
    summary, *rest = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    lines = [f"# {rewrite.name}", "", " ".join(summary.split()), ""]
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


def pages() -> dict[Path, str]:
    """Every page by its path, the index included."""
    rows = ["# Passes", "", "| pass | promises | what it does |", "|---|---|---|"]
    found = {}
    for name in registry.names():
        rewrite = registry.get(name)
        found[FOLDER / f"{name}.md"] = page(rewrite)
        first = inspect.cleandoc(rewrite.__doc__ or "").splitlines()[0]
        rows.append(f"| [{name}]({name}.md) | {rewrite.fidelity.name} | {first} |")
    found[FOLDER / "README.md"] = "\n".join(rows) + "\n"
    return found


@click.command()
@click.option("--check", is_flag=True, help="Only see whether the pages are up to date.")
def main(check: bool) -> None:
    """Write the pages of all passes."""
    wanted = pages()
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
