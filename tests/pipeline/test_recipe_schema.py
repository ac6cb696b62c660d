"""The published schema of recipes accepts what is read, and refuses what is not."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from onnxslim.errors import UsageError
from onnxslim.pipeline import recipe, registry
from onnxslim.pipeline.recipe import parse_recipe
from onnxslim.pipeline.recipe_schema import recipe_schema

DOCS = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
BLOCKS = re.compile(r"```toml[^\n]*file=[^\n]*\n(.*?)```", re.S)
SCHEMA = recipe_schema()
CHECKER = jsonschema.Draft202012Validator(SCHEMA)


def is_valid(text: str) -> bool:
    return CHECKER.is_valid(tomllib.loads(text))


def test_the_schema_is_one_and_is_the_published_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads((DOCS / "docs" / "recipe.schema.json").read_text("utf-8")) == SCHEMA


def test_every_key_that_is_read_is_in_the_schema() -> None:
    assert SCHEMA["properties"].keys() == {*recipe._READERS, *recipe._TABLES}


def test_every_recipe_of_the_pages_is_valid() -> None:
    blocks = [
        block
        for page in (DOCS / "docs").rglob("*.md")
        for block in re.findall(
            r"```toml[^\n]*file=[^\n]*\n(.*?)```", page.read_text("utf-8"), re.S
        )
    ]
    assert len(blocks) >= 2
    for block in blocks:
        parse_recipe(block)
        CHECKER.validate(tomllib.loads(block))


@pytest.mark.parametrize("name", registry.names())
def test_defaults_of_every_pass_are_valid(name: str) -> None:
    options = [spec for spec in registry.get(name).options() if spec.default not in (None, ())]
    table = {spec.name: spec.default for spec in options}
    data = {"passes": [{"name": name, **json.loads(json.dumps(table))}]}
    CHECKER.validate(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        'passes = "simplify"\ngoal = "bytes"\nthreads = 2\nseed = 0\nstrict = true',
        "[floors]\nmax-drop = 0.5\nmin-cosine = -1",
        '[data]\nimage-size = 224\nmap = { image = "pixels" }\nscale = "1/255"',
        '[output-kinds]\nlogits = "classes"\n[input-shapes]\nx = [1, 3, 224, 224]',
        '[[passes]]\nname = "prune-channels"\nmacs = 0.5\nskip = ["a"]',
    ],
)
def test_what_is_read_is_valid(text: str) -> None:
    parse_recipe(text)
    CHECKER.validate(tomllib.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        "sede = 3",
        "threads = 0",
        "threads = 1.5",
        'goal = "size"',
        "[floors]\nmin-agreement = 1.5",
        "[data]\nimage_siz = 3",
        '[output-kinds]\nlogits = "numbers"',
        "[input-shapes]\nx = [0]",
        '[[passes]]\nname = "simplfy"',
        "[[passes]]\nratio = 0.3",
        '[[passes]]\nname = "prune-channels"\nratio = 1.5',
        '[[passes]]\nname = "prune-channels"\nrato = 0.5',
        '[[passes]]\nname = "cluster-weights"\nbits = "many"',
    ],
)
def test_what_is_refused_is_not_valid(text: str) -> None:
    with pytest.raises(UsageError):
        parse_recipe(text)
    assert not is_valid(text)
