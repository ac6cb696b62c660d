"""A page in a headless Chromium, as Debian ships it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BROWSER: Final = shutil.which("chromium")
_FLAGS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page.

    Attributes:
        dom: the document after its scripts.
        console: lines that were written to the console: errors, refused requests.
    """

    dom: str
    console: list[str]


def seen(page: str, folder: Path, tail: str = "") -> Seen:
    """Open a page; `tail` is markup that is put at its end first."""
    copy = folder / "page.html"
    copy.write_text(page.replace("</body>", f"{tail}</body>"), "utf-8")
    done = subprocess.run(
        [
            str(BROWSER),
            *_FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return Seen(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])
