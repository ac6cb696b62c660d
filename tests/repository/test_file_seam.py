"""Files are written, mapped, moved and removed in one module, `onnxslim/io/files.py`.

What tests make fail there (`tests/faults.py`) is therefore all that can fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from sources import syntax_nodes

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
SEAM = ROOT / "onnxslim" / "io" / "files.py"
SOURCES = sorted(p for d in ("onnxslim", "passes", "runtime") for p in (ROOT / d).rglob("*.py"))
MODULES = {"tempfile", "mmap", "shutil"}
HARMLESS = {"shutil.get_terminal_size"}
METHODS = {
    *("write_text", "write_bytes", "rename", "unlink", "mkdir", "rmdir", "touch", "chmod"),
    *("symlink_to", "hardlink_to", "memmap", "open_memmap", "savez", "savez_compressed", "tofile"),
    *("save_model", "makedirs", "removedirs", "fsync", "ftruncate", "truncate", "renames"),
}
IN_OS = {"replace", "remove", "open", "link", "symlink", "fdopen", "write", "mknod", "mkfifo"}


def offences(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Calls that change the file system, as `line: call`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield f"{node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if node.module in MODULES and name not in HARMLESS:
                    yield f"{node.lineno}: from {node.module} import {alias.name}"
        elif isinstance(node, ast.Call) and _writes(node):
            yield f"{node.lineno}: {ast.unparse(node)}"


def _writes(call: ast.Call) -> bool:
    """Whether a call writes, moves or maps a file."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    texts = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if _is_text(a)]
    modes = [set(text) for text in texts if set(text) <= set("rwaxbt+")]
    if name == "open" and any(mode & set("wax+") for mode in modes):
        return True
    if not isinstance(call.func, ast.Attribute) or name not in METHODS | IN_OS | {"save", "load"}:
        return False
    owner, method = ast.unparse(call.func.value), name
    if owner == "files":
        return False
    if owner == "os":
        target = ast.unparse(call.args[0]) if call.args else ""
        return method in IN_OS | METHODS and target != "os.devnull"
    if method in ("save", "load") and owner in ("np", "numpy", "onnx"):
        return method == "save" or any(k.arg == "mmap_mode" for k in call.keywords)
    # a path has one new name; a text has two
    is_rename = method == "replace" and len(call.args) == 1 and not call.keywords
    return method in METHODS or is_rename


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_no_other_module_changes_the_file_system() -> None:
    found = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if path != SEAM and (lines := list(offences(syntax_nodes(path))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "import tempfile",
        "from mmap import mmap",
        "path.open('wb')",
        "open(path, mode='r+b')",
        "os.replace(a, b)",
        "path.replace(other)",
        "Path(name).write_text(text)",
        "np.load(path, mmap_mode='r')",
        "onnx.save(model, path)",
        "folder.mkdir(parents=True)",
    ],
)
def test_what_changes_the_file_system_is_found(line: str) -> None:
    assert list(offences(ast.walk(ast.parse(line))))


@pytest.mark.parametrize(
    "line",
    [
        "path.open('rb')",
        "open(path, encoding='utf-8')",
        "text.replace('a', 'b')",
        "replace(step, model=None)",
        "from shutil import get_terminal_size",
        "np.load(path, allow_pickle=False)",
        "files.rename(a, b)",
    ],
)
def test_what_only_reads_is_not(line: str) -> None:
    assert not list(offences(ast.walk(ast.parse(line))))
