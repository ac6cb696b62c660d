"""The source files of the package, each parsed once in a process."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def syntax_nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of the syntax tree of a file, the module first."""
    return tuple(ast.walk(ast.parse(path.read_text("utf-8"))))
