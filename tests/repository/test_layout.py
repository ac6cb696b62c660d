"""What the layout of the repository promises: cheap imports, their direction, pages and tests."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from sources import syntax_nodes

import onnxslim
import onnxslim.passes
from onnxslim.errors import UsageError
from onnxslim.pipeline import registry

ROOT = Path(__file__).parents[2]
HEAVY = ("onnx", "onnxruntime", "numpy", "scipy", "networkx", "rich", "onnx_graphsurgeon")
SECTIONS = ("Rewrite", "Why it is correct", "Declines when", "Fidelity", "Reference")
BUILT_IN = sorted(onnxslim.passes.PASSES)


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a new interpreter has loaded after `code`."""
    tail = "\nprint('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}{tail}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_import_loads_nothing_heavy() -> None:
    assert not loaded_by("import onnxslim").intersection(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"from onnxslim import cli\nassert cli.run({arguments!r}) == 0"
    assert not loaded_by(code).intersection(HEAVY)


def test_pipeline_text_loads_no_onnxruntime() -> None:
    loaded = loaded_by("import onnxslim\nonnxslim.parse_pipeline('eliminate-identity')")
    assert "onnxruntime" not in loaded
    assert "scipy" not in loaded


def test_what_verifies_models_loads_no_scipy() -> None:
    assert "scipy" not in loaded_by("import onnxslim.runtime.measure.verify")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import onnxslim.runtime.samples, onnxslim.passes as p; print(p.__file__)"],
        ["-m", "onnxslim", "passes", "eliminate-identity"],
    ],
)
@pytest.mark.parametrize("is_inside", [True, False])
def test_a_checkout_works_whatever_the_folder(
    arguments: list[str], is_inside: bool, tmp_path: Path
) -> None:
    unsafe = {"PYTHONPATH", "PYTHONSAFEPATH"}  # the current folder comes first, as for users
    environment = {name: value for name, value in os.environ.items() if name not in unsafe}
    if not is_inside:
        environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT if is_inside else tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    if arguments[0] == "-c":
        assert Path(done.stdout.strip()) == ROOT / "passes" / "__init__.py"


# ------------------------------------------------------------------- import direction


@cache
def imports_of(path: Path) -> tuple[str, ...]:
    """The modules that a file imports anywhere, under their full names."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in syntax_nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    ("folder", "forbidden", "except_"),
    [
        ("onnxslim", "onnxslim.passes", {"api.py"}),
        ("onnxslim", "onnxslim.runtime", {"api.py", "surveys.py", "settings.py"}),
        ("onnxslim", "onnxruntime", set[str]()),
        ("passes", "onnxslim.runtime", set[str]()),
        ("passes", "onnxslim.api", set[str]()),
        ("passes", "onnxruntime", set[str]()),
        ("runtime", "onnxslim.passes", set[str]()),
        ("runtime", "onnxslim.api", set[str]()),
    ],
)
def test_arrows_point_inwards(folder: str, forbidden: str, except_: set[str]) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(folder)
        if path.name not in except_
        for name in imports_of(path)
        if name == forbidden or name.startswith(f"{forbidden}.")
    ]
    assert wrong == []


def is_found(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except UsageError:  # it is there, and needs an extra that is not installed
        return True
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_what_is_run_by_hand_imports_names_that_exist(folder: str) -> None:
    """Benchmarks take hours and are no tests: a name that moved would show long after."""
    used = {
        (path.name, name)
        for path in files_of(folder)
        for name in imports_of(path)
        if name.partition(".")[0] == "onnxslim"
    }
    assert used
    assert [name for name in sorted(used) if not is_found(name[1])] == []


# ------------------------------------------------------------------- public names


def test_public_names_are_those_in_all() -> None:
    assert sorted(onnxslim.__all__) == onnxslim.__all__
    assert sorted(onnxslim._HOME) == sorted(onnxslim.__all__)
    for name in onnxslim.__all__:
        assert getattr(onnxslim, name) is not None
    assert set(onnxslim.__all__) <= set(dir(onnxslim))


def test_public_names_are_known_to_type_checkers() -> None:
    tree = ast.parse(inspect.getsource(onnxslim))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"onnxslim.{home}" for name, home in onnxslim._HOME.items()}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute `nope`"):
        _ = onnxslim.nope


def test_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == onnxslim.__version__


def test_every_folder_with_code_is_packaged() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    inside = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for folder in ("onnxslim", "passes", "runtime")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    packaged = {name if name.startswith("onnxslim") else f"onnxslim.{name}" for name in inside}
    assert packaged == set(setuptools["packages"])


# ------------------------------------------------------------------- passes


@pytest.mark.parametrize("name", BUILT_IN)
def test_pass_has_one_name_everywhere(name: str) -> None:
    stem = name.replace("-", "_")
    class_name = "".join(word.capitalize() for word in name.split("-"))
    target = onnxslim.passes.PASSES[name]
    module, _, owner = target.partition(":")
    assert module == stem
    assert owner.lower() == class_name.lower()
    assert (ROOT / "passes" / f"{stem}.py").is_file()
    assert registry.get(name).__name__ == owner


@pytest.mark.parametrize("name", BUILT_IN)
def test_pass_has_a_test_file(name: str) -> None:
    stem = f"test_{name.replace('-', '_')}.py"
    assert list((ROOT / "tests" / "passes").rglob(stem)), f"tests/passes/{stem} is missing"


@pytest.mark.parametrize("name", BUILT_IN)
def test_page_of_a_pass_has_all_sections_in_order(name: str) -> None:
    module = importlib.import_module(registry.get(name).__module__)
    found = re.findall(r"^([A-Z][a-z ]+):$", module.__doc__ or "", re.MULTILINE)
    assert tuple(title for title in found if title in SECTIONS) == SECTIONS
    assert (registry.get(name).__doc__ or "").strip().split("\n")[0].endswith(".")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_has_a_help_text(name: str) -> None:
    assert all(spec.help.strip() for spec in registry.get(name).options())


def test_table_of_contents_lists_every_pass_module_in_order() -> None:
    modules = {path.stem for path in (ROOT / "passes").glob("*.py")}
    listed = {target.partition(":")[0] for target in onnxslim.passes.PASSES.values()}
    unlisted = sorted(stem for stem in modules - listed if defines_a_pass(stem))
    assert unlisted == []
    assert list(onnxslim.passes.PASSES) == BUILT_IN


def defines_a_pass(stem: str) -> bool:
    source = (ROOT / "passes" / f"{stem}.py").read_text("utf-8")
    return re.search(r"^class [A-Z]\w*\(\w*(Pass|Preset)\)", source, re.MULTILINE) is not None
