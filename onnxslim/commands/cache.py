"""`onnxslim cache DIR`: what a cache of steps holds, and how much it may take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import CACHE_VARIABLE, ByteSize, json_option
from onnxslim.commands.console import paper, say
from onnxslim.errors import UsageError

if TYPE_CHECKING:
    from onnxslim.io.content_store import ContentStore
    from onnxslim.pipeline.step_cache import KeptSteps
    from onnxslim.render.json import Json

_SHOWN = 20


@click.command("cache", short_help=COMMANDS["cache"])
@click.argument("folder", metavar="DIR", envvar=CACHE_VARIABLE)
@click.option(
    "--limit",
    type=ByteSize(),
    metavar="SIZE",
    help="Bytes that DIR may take, such as 2GB, from now on; what was not used for the longest "
    "time goes first. Default: 5GB.",
)
@click.option("--clear", is_flag=True, help="Remove all that is kept.")
@json_option
def command(folder: str, limit: int | None, clear: bool, as_json: bool) -> None:
    """Show what the cache of steps in DIR holds: see --cache of `onnxslim compress`.

    Several commands may use one DIR at once, this one included. Files of others in DIR stay.
    """
    from onnxslim.io.content_store import ContentStore
    from onnxslim.io.staging import writing

    place = Path(folder)
    if not place.is_dir():
        raise UsageError(f"There is no folder `{place}`. Give the one of --cache.")
    store = ContentStore(place)
    if clear:
        store.clear()
    if limit is not None:
        with writing(place / "limit"):
            store.set_limit(limit)
    _show(store, as_json=as_json)


def _show(store: ContentStore, *, as_json: bool) -> None:
    from onnxslim.pipeline.step_cache import kept_steps
    from onnxslim.render.json import json_text

    steps = kept_steps(store)
    if as_json:
        figures: Json = {
            "folder": str(store.folder),
            "bytes": sum(file.nbytes for file in store.kept()),
            "limit_bytes": store.limit,
            "seconds": sum(item.seconds for item in steps),
            "steps": [
                {"steps": list(item.specs), "seconds": item.seconds, "used": item.used}
                for item in steps
            ],
        }
        say(json_text(figures).rstrip())
    else:
        say(_text(store, steps))


def _text(store: ContentStore, steps: Sequence[KeptSteps]) -> str:
    from onnxslim.render.tables import FigureTable
    from onnxslim.render.units import bytes_text, seconds_text

    total = sum(file.nbytes for file in store.kept())
    lines = [
        f"{store.folder}: {bytes_text(total)} of at most {bytes_text(store.limit)}, {len(steps)} "
        f"steps that took {seconds_text(sum(item.seconds for item in steps))}"
    ]
    if steps:
        grid = FigureTable(("steps", "took", "last used"))
        now = time.time()
        for item in steps[:_SHOWN]:
            ago = f"{seconds_text(max(0.0, now - item.used))} ago"
            grid.add(",".join(item.specs), seconds_text(item.seconds), ago)
        lines += ["", grid.render(paper())]
    if len(steps) > _SHOWN:
        lines.append(f"and {len(steps) - _SHOWN} more")
    return "\n".join(lines)
