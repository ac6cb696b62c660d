"""Commands, recipes and code in pages are what onnxslim understands; `docs/run.py` runs them."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxslim.cli import cli
from onnxslim.pipeline import recipe
from onnxslim.pipeline.grammar import parse_pipeline

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())


def _load_runner():
    spec = importlib.util.spec_from_file_location("docs_run", ROOT / "docs/run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


runner = _load_runner()
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}:{block.line}")
    for page in runner.pages()
    for block in runner.blocks(page.read_text("utf-8"))
]


def commands(body: str) -> Iterator[list[str]]:
    """The arguments of every call of `onnxslim` in shell code."""
    for line in body.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while "onnxslim" in words:
            words = words[words.index("onnxslim") + 1 :]
            end = next((i for i, word in enumerate(words) if word in ("&&", ";", "|", ">")), None)
            yield words[:end]


@pytest.mark.parametrize("block", BLOCKS)
def test_code_is_understood(block) -> None:
    if block.language == "sh":
        for arguments in commands(block.body):
            if arguments[0] == "--help":
                continue
            with cli.make_context("onnxslim", list(arguments)) as outer:
                words = [*outer._protected_args, *outer.args]
                name, command, rest = cli.resolve_command(outer, words)
                with command.make_context(name, rest, parent=outer) as inner:
                    parse_pipeline(inner.params.get("passes") or "simplify")
    elif block.language == "python":
        compile(block.body, "page", "exec")
    elif block.language == "toml" and block.value("file"):
        recipe.parse_recipe(block.body)
    elif not block.language:
        starts = re.findall(r"^(?:onnxslim|pip) ", block.body, re.M)
        assert not starts, "name the language: sh"


def test_calls_are_found_in_shell_code() -> None:
    body = (
        "pip install . && onnxslim demo   # all\n$ onnxslim a.onnx \\\n  --force > b; onnxslim c\n"
    )
    assert list(commands(body)) == [["demo"], ["a.onnx", "--force"], ["c"]]


def test_every_key_of_a_recipe_is_in_its_page() -> None:
    text = (ROOT / "docs/recipes.md").read_text("utf-8")
    found = set(re.findall(r"^\| `([\w.-]+)` \|", text, re.M))
    tables = set(recipe._TABLES) - set(recipe.SOURCES)
    assert {name for name in recipe.SOURCES if f"`{name}`" not in text} == set()
    assert {key.partition(".")[0] for key in found if "." in key} == tables
    assert {key.partition(".")[2] for key in found if key.startswith("floors.")} == set(
        recipe.FLOORS
    )
    assert {key for key in found if "." not in key} == {
        *recipe._READERS,
        *recipe.SOURCES.values(),
    }
