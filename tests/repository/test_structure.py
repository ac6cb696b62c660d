"""What may import what: no circle between files or folders, and no arrow that runs up a tier.

Imports for type checkers count like all others: a reader follows them too.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import networkx as nx
import pytest
from sources import syntax_nodes

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
TIERS = (
    ("version", "callable_package", "records", "limits", "details"),
    ("report",),
    ("errors", "linear_algebra"),
    ("graph", "render"),
    ("packing", "pages"),
    ("io",),
    ("services",),
    ("analysis",),
    ("codebook",),
    ("constraints",),
    ("solvers",),
    ("pipeline",),
    ("lossy",),
    ("lowrank", "channels", "blocks", "vocabulary", "quantization", "precision", "exits"),
    ("lowering",),
    ("residual", "substitution"),
    ("run",),
    ("tools", "tuning"),
    ("api", "surveys"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""The rooms of the core from the ground up: each imports only rooms of earlier rows, and itself."""

NO_ONNX = ("onnxslim.solvers", "onnxslim.packing", "onnxslim.render", "onnxslim.pages")
"""Rooms that know neither ONNX nor a graph."""


def module_of(path: Path) -> str:
    """The name under which a source file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "onnxslim" else ("onnxslim", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(path): path
    for folder in ("onnxslim", "passes", "runtime")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PACKAGES = sorted(name for name, path in FILES.items() if path.name == "__init__.py")


def imported(module: str) -> Iterator[str]:
    """The modules of ours that a module names in an import, wherever it stands."""
    for node in syntax_nodes(FILES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in FILES:
                    yield name
                elif node.module in FILES:
                    yield node.module


def arrows() -> set[tuple[str, str]]:
    """Who imports whom, by module."""
    return {(a, b) for a in FILES for b in imported(a) if a != b}


ARROWS = arrows()


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    components = nx.strongly_connected_components(nx.DiGraph(edges))
    return sorted(sorted(found) for found in components if len(found) > 1)


def folder(module: str) -> str:
    return module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]


def test_no_circle_between_files() -> None:
    assert circles(ARROWS) == []


def test_no_circle_between_folders() -> None:
    edges = {(folder(a), folder(b)) for a, b in ARROWS}
    between = {(a, b) for a, b in edges if a != b and "onnxslim" not in (a, b)}
    assert circles(between) == []


def test_a_circle_would_be_found() -> None:
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [["a", "b", "c"]]


def test_arrows_run_down_the_tiers() -> None:
    tier = {room: number for number, rooms in enumerate(TIERS) for room in rooms}
    rooms = [
        (a, b, a.split(".")[1], b.split(".")[1]) for a, b in ARROWS if a.count(".") and "." in b
    ]
    wrong = [
        f"{a} imports {b}"
        for a, b, ours, theirs in sorted(rooms)
        if ours != theirs and {ours, theirs} <= tier.keys() and tier[theirs] >= tier[ours]
    ]
    assert wrong == []


def test_every_room_has_a_tier() -> None:
    rooms = {name.split(".")[1] for name in FILES if "." in name}
    assert rooms - {"passes", "runtime"} == {room for tier in TIERS for room in tier}


@pytest.mark.parametrize("room", NO_ONNX)
def test_room_knows_no_onnx(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {line}"
        for name, path in FILES.items()
        if name == room or name.startswith(f"{room}.")
        for line in re.findall(
            r"^\s*(?:import|from) onnx(?:_graphsurgeon|runtime)?\b.*",
            path.read_text("utf-8"),
            re.MULTILINE,
        )
    ]
    assert wrong == []


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "onnxslim.passes"])
def test_package_lists_its_modules_in_reading_order(package: str) -> None:
    """What lies in a folder is said in one place, once, in the order to read it in."""
    inside = {
        name.removeprefix(f"{package}.").partition(".")[0]
        for name in FILES
        if name.startswith(f"{package}.")
    }
    if package == "onnxslim":
        inside -= {"__main__", "version", "passes", "runtime"}
    listed = re.findall(
        r"^ *(\w+) {2,}\S", importlib.import_module(package).__doc__ or "", re.MULTILINE
    )
    assert sorted(listed) == sorted(inside)


def test_every_class_name_has_one_meaning() -> None:
    """Two classes of one name, private ones too, make a reader look up which one is meant."""
    owners: dict[str, list[str]] = {}
    for name, path in FILES.items():
        for node in cast("ast.Module", syntax_nodes(path)[0]).body:
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, []).append(name)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}
