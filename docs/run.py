"""Run the commands of the pages, and write what they print below them.

    python docs/run.py                       # every page; fails where a command does
    python docs/run.py docs/guide.md         # one page
    python docs/run.py --write docs/tutorials/smaller.md    # replace the outputs in it, too

A fenced block that starts with `sh` or `python` is run. The blocks of a page run in order in one
new folder that holds the bundled model and digits: `model.onnx`, `samples.npz`, `labelled.npz`. A
`text` block right below is what its command prints on standard output. Words after the language:

    exit=4      the exit code that is expected
    file=NAME   written to a file of that name; not run
    net         downloads packages; left out with --offline
    slow        takes minutes; only with --slow, or with --write
    norun       stands for the reader's own files, or changes the machine
"""

from __future__ import annotations

import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
ASSETS = {
    "lenet5.onnx": "model.onnx",
    "mnist_calib.npz": "samples.npz",
    "mnist_eval.npz": "labelled.npz",
}
LANGUAGES = ("sh", "python", "toml")
_BLOCK = re.compile(
    r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$(?P<output>\n+```text\n.*?^```$)?", re.S | re.M
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: number of the line with its code.
        language: the first word behind the fence; empty where there is none.
        words: the other words.
        body: the code.
        output: where its output lies in the page's text, from and to; None: none is shown.
    """

    line: int
    language: str
    words: tuple[str, ...]
    body: str
    output: tuple[int, int] | None

    def value(self, key: str) -> str | None:
        """The value of a word `key=value`; None without one."""
        values = (word.partition("=")[2] for word in self.words if word.startswith(f"{key}="))
        return next(values, None)

    @property
    def is_run(self) -> bool:
        """Whether the block is code that runs."""
        known = self.language in ("sh", "python")
        return known and "norun" not in self.words and self.value("file") is None

    def arguments(self) -> list[str]:
        """The process that runs the code."""
        return ["bash", "-ec", self.body] if self.language == "sh" else [sys.executable, "-"]


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    for found in _BLOCK.finditer(text):
        language, *words = found["info"].split() or [""]
        span = found.span("output")
        yield Block(
            line=text.count("\n", 0, found.start("body")) + 1,
            language=language,
            words=tuple(words),
            body=found["body"],
            output=span if found["output"] else None,
        )


def pages() -> list[Path]:
    """All pages that are read by people and not generated."""
    found = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"))
    return sorted(page for page in found if page.parent.name != "passes")


def run_page(page: Path, *, offline: bool, slow: bool, write: bool) -> list[str]:
    """Run the blocks of a page; returns what failed, in sentences."""
    text = page.read_text("utf-8")
    failures, outputs = [], []
    with tempfile.TemporaryDirectory(prefix="onnxslim-page-") as folder:
        _furnish(Path(folder))
        for block in blocks(text):
            if name := block.value("file"):
                (Path(folder) / name).write_text(block.body, "utf-8")
            left_out = (offline and "net" in block.words) or (not slow and "slow" in block.words)
            if not block.is_run or left_out:
                continue
            started = time.perf_counter()
            done = _run(block, Path(folder))
            place = f"{page.relative_to(ROOT)}:{block.line}"
            click.echo(f"{time.perf_counter() - started:6.1f} s  {place}")
            wanted = int(block.value("exit") or 0)
            if done.returncode != wanted:
                failures.append(
                    f"{place}: exit code {done.returncode} in place of {wanted}\n"
                    f"{block.body}{done.stdout}{done.stderr}"
                )
            elif block.output:
                shown = done.stdout + (done.stderr if wanted else "")
                outputs.append((block.output, f"\n\n```text\n{_trimmed(shown)}\n```"))
    if write:
        for (start, end), output in reversed(outputs):
            text = text[:start] + output + text[end:]
        page.write_text(text, "utf-8")
    return failures


def _furnish(folder: Path) -> None:
    for name, here in ASSETS.items():
        with importlib.resources.as_file(importlib.resources.files("onnxslim") / "assets") as home:
            shutil.copy(home / name, folder / here)


def _run(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        block.arguments(),
        input=block.body if block.language == "python" else "",
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PATH": programs, "COLUMNS": "100", "NO_COLOR": "1"},
        check=False,
    )


def _trimmed(output: str) -> str:
    return "\n".join(line.rstrip() for line in output.strip("\n").splitlines())


@click.command()
@click.argument("chosen", metavar="[PAGE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--offline", is_flag=True, help="Leave out what downloads packages.")
@click.option("--slow", is_flag=True, help="Run what takes minutes, too.")
@click.option("--write", is_flag=True, help="Write outputs into the pages; implies --slow.")
def main(chosen: tuple[Path, ...], offline: bool, slow: bool, write: bool) -> None:
    """Run the commands of pages; all of them by default."""
    failures = [
        failure
        for page in ([path.resolve() for path in chosen] or pages())
        for failure in run_page(page, offline=offline, slow=slow or write, write=write)
    ]
    for failure in failures:
        click.echo(failure, err=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
