"""`onnxslim groups MODEL`: which channels can leave together, and what keeps the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import PipelineText, overwrite_option, report_option, talk_options
from onnxslim.commands.console import paper, say
from onnxslim.commands.files import check_report, write_report
from onnxslim.commands.progress import progress
from onnxslim.commands.streams import source_of
from onnxslim.render.formats import JSON

if TYPE_CHECKING:
    from onnxslim.channels.groups import ChannelGroup, Channels
    from onnxslim.channels.tracing import Member
    from onnxslim.render.json import Json
    from onnxslim.services.layer_names import LayerNames
    from onnxslim.tools.grouping import GroupSurvey

_NAMES_SHOWN = 6


@click.command("groups", short_help=COMMANDS["groups"])
@click.argument("model")
@click.option(
    "--passes",
    type=PipelineText(),
    metavar="PIPELINE",
    help="Look at what these passes make of MODEL, such as simplify; nothing is verified.",
)
@report_option(JSON, "Write all groups, with all names, as JSON.")
@overwrite_option
@talk_options
def command(
    model: str,
    passes: str | None,
    report: str | None,
    overwrite: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Show the channel groups of MODEL: what pruning could remove, and why not the rest.

    A group holds the layers that write channels which must leave together, and the layers that
    read them. A unit is the least that can leave: a channel of each, or a whole head or group of
    normalization. With --verbose no list of names is shortened, and layers are shown with the
    names of their nodes and weights. No file is changed. A MODEL of `-` is standard input.
    """
    source = Path(model)
    if report is not None:
        check_report(Path(report), source, source, JSON, overwrite=overwrite)
    from onnxslim import surveys

    with (
        progress(quiet=quiet, verbose=verbose) as shown,
        shown.step("following channels"),
    ):
        found = surveys.groups(source_of(model), passes=passes, progress=shown)
    if report is not None:
        write_report(Path(report), _json(found, source), JSON)
    if not quiet:
        say(_text(found, None if verbose else _NAMES_SHOWN))


# --------------------------------------------------------------------------- text


def _text(found: GroupSurvey, most: int | None) -> str:
    from onnxslim.render.printable import printable
    from onnxslim.render.tables import wrapped

    lines: list[str] = []
    for number, group in enumerate(found.channels.groups, 1):
        lines += [*_group_lines(found, group, number, most), ""]
    if found.unpruned:
        lines += [f"left alone: {len(found.unpruned):,}"]
        lines += [f"  `{skip.node}`: {skip.why}" for skip in found.unpruned] + [""]
    lines.append(_totals_text(found))
    if found.computed_constants:
        lines.append(
            f"note: constants that nodes compute are not followed (nodes: "
            f"{found.computed_constants:,}); `--passes simplify` shows what there is without them"
        )
    return "\n".join(wrapped(printable(line), paper()) for line in lines)


def _group_lines(
    found: GroupSurvey, group: ChannelGroup, number: int, most: int | None
) -> Iterator[str]:
    free = len(found.channels.free(group))

    def named(label: str) -> str:
        others = () if most is not None else found.names.of_layer(label)[1:]
        return f"{label} ({', '.join(others)})" if others else label

    yield f"group {number}: {group.size:,} units, {free:,} may leave"
    writers = [f"{named(member.label)} ({len(member.ids):,})" for member in group.writers]
    yield f"  written by  {_names(writers, most)}"
    if group.channelwise:
        yield f"  passed by   {_names([f'{label} ({op})' for label, op in _passing(group)], most)}"
    if group.readers:
        yield f"  read by     {_names([named(member.label) for member in group.readers], most)}"
    for why, count in _by_count(group.pins):
        yield f"  {count:>9,} stay: {why}"


def _names(names: Sequence[str], most: int | None) -> str:
    """The first `most` names, and the number of the others."""
    if most is None or len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most:,} more"


def _passing(group: ChannelGroup) -> list[tuple[str, str]]:
    """Label and operator of the nodes in between with parameters for each channel."""
    from onnxslim.graph.ir import node_label

    return [(node_label(node), node.op) for node, _ in group.channelwise]


def _by_count(pins: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(pins.items(), key=lambda item: (-item[1], item[0]))


def _totals_text(found: GroupSurvey) -> str:
    totals = found.totals
    return (
        f"{totals['groups']:,} groups: {totals['free_units']:,} of {totals['units']:,} units may "
        f"leave, with {totals['free_channels']:,} of {totals['channels']:,} channels of "
        f"{totals['layers']:,} layers"
    )


# --------------------------------------------------------------------------- JSON


def _json(found: GroupSurvey, source: Path) -> Json:
    import onnxslim

    channels = found.channels
    return {
        "onnxslim": onnxslim.__version__,
        "input": {"path": str(source), "sha256": found.sha256},
        "groups": [_group_json(channels, group, found.names) for group in channels.groups],
        "left_alone": [{"node": skip.node, "why": skip.why} for skip in found.unpruned],
        "totals": dict(found.totals),
    }


def _group_json(channels: Channels, group: ChannelGroup, names: LayerNames) -> dict[str, Json]:
    return {
        "name": group.name,
        "units": group.size,
        "free_units": len(channels.free(group)),
        "written_by": [_member_json(m, names) for m in group.writers],
        "passed_by": [{"node": label, "op": op} for label, op in _passing(group)],
        "read_by": [_member_json(m, names) for m in group.readers],
        "pins": [{"why": why, "units": count} for why, count in _by_count(group.pins)],
    }


def _member_json(member: Member, names: LayerNames) -> Json:
    return {
        "node": member.label,
        "names": list(names.of_layer(member.label)[1:]),
        "channels": len(member.ids),
    }
