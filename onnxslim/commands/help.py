"""`onnxslim help [NAME]`: the help of a command, or the page of a pass."""

from __future__ import annotations

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.console import say


@click.command("help", short_help=COMMANDS["help"])
@click.argument("name", metavar="[COMMAND|PASS]", required=False)
@click.pass_context
def command(context: click.Context, name: str | None) -> None:
    """Show the help of COMMAND, the page of PASS, or the list of commands."""
    root = context.find_root()
    group = root.command
    if name is None:
        say(root.get_help())
        return
    found = group.get_command(root, name) if isinstance(group, click.Group) else None
    if found is not None:
        say(found.get_help(click.Context(found, info_name=name, parent=root)))
        return
    from onnxslim.commands.passes import page

    say(page(name))
