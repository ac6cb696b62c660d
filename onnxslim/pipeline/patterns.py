"""Names as options give them: the name itself, or a shell pattern with `*`, `?` and `[...]`.

Exporters write names that hold the characters of patterns, such as `layers[0]`, so a name always
matches itself.
"""

from __future__ import annotations

import glob
from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` is `name`, or a shell pattern for it.

    >>> matches("layers[0]", "layers[0]"), matches("layers[0]", "layers*"), matches("a", "b")
    (True, True, False)
    """
    return name == pattern or fnmatchcase(name, pattern)


def literal(name: str) -> str:
    """The pattern that matches `name` and no other name.

    >>> literal("layers.0"), literal("layers[0]")
    ('layers.0', 'layers[[]0]')
    """
    return glob.escape(name)
