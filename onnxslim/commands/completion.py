"""`onnxslim completion SHELL`: the script that completes commands, options, passes and files."""

from __future__ import annotations

import os
import shlex
from typing import Final

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
)

from onnxslim.commands import COMMANDS
from onnxslim.commands.console import say

VARIABLE: Final = "_ONNXSLIM_COMPLETE"
_SHELLS: Final = ("bash", "zsh", "fish")


@click.command("completion", short_help=COMMANDS["completion"])
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete commands, options, passes and their options.

    \b
    bash: eval "$(onnxslim completion bash)"    in ~/.bashrc
    zsh:  eval "$(onnxslim completion zsh)"    in ~/.zshrc, after compinit
    fish: onnxslim completion fish | source    in ~/.config/fish/config.fish
    """  # noqa: D301 - click reads the sign
    script = SHELLS[shell](context.find_root().command, {}, "onnxslim", VARIABLE)
    say(script.source_template % script.source_vars())


class _OrFiles(ShellComplete):
    """Completion that offers files where nothing else fits."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What fits, else files."""
        found = super().get_completions(args, incomplete)
        if found or incomplete.startswith("-"):
            return found
        return [CompletionItem(incomplete, type="file")]


class _Zsh(_OrFiles, ZshComplete):
    pass


class _Fish(_OrFiles, FishComplete):
    """Completion in fish; the comma behind the type of an answer is not the last one in it."""

    source_template = FishComplete.source_template.replace(
        'string split "," $completion', 'string split --max 1 "," $completion'
    )


class _Bash(_OrFiles, BashComplete):
    """Completion in bash, which itself breaks words at the `:` and `=` of a pipeline.

    The words are therefore read off the line, and answers begin behind the last such sign.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' item
    COMPREPLY=()
    for item in $(env COMP_LINE="${COMP_LINE:0:$COMP_POINT}" %(complete_var)s=bash_complete $1); do
        case "$item" in
            file,*) compopt -o default ;;
            dir,*) compopt -o dirnames ;;
            *) COMPREPLY+=("${item#*,}"); case "$item" in *=|*:) compopt -o nospace ;; esac ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the word at it."""
        words = _words(os.environ["COMP_LINE"])
        return words[1:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """What bash puts in place of the part of the word behind the last `:` or `=`."""
        word = _words(os.environ["COMP_LINE"])[-1]
        begun = max(word.rfind(sign) for sign in ":=") + 1
        value = item.value
        return f"{item.type},{value[begun:] if value.startswith(word[:begun]) else value}"


SHELLS: Final[dict[str, type[ShellComplete]]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def answer(group: click.Command, instruction: str) -> int:
    """Answer the script of a shell, which asks by `VARIABLE`; returns the exit code."""
    shell, _, wish = instruction.partition("_")
    if shell not in SHELLS or wish != "complete":
        return 1
    found = SHELLS[shell](group, {}, "onnxslim", VARIABLE).complete()
    if found:
        click.echo(found)  # tabs part words from their help: `say` would escape them
    return 0


def _words(line: str) -> list[str]:
    """The words of a line; the last one is empty behind a space, and may lack its closing quote."""
    for end in ("", "'", '"'):
        try:
            words = shlex.split(line + end)
        except ValueError:
            continue
        return [*words, ""] if line[-1:].isspace() and not end else words
    return line.split(" ")
