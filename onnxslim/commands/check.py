"""`onnxslim check OUT --against IN --report run.json`: a claim proved again, elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    calib_option,
    data_options,
    eval_option,
    floor_options,
    json_option,
    junit_option,
    no_latency_option,
    overwrite_option,
    provider_option,
    run_options,
)
from onnxslim.commands.console import paper, say
from onnxslim.commands.files import check_beside, write_report
from onnxslim.commands.progress import progress
from onnxslim.commands.streams import refuse_stream
from onnxslim.errors import ClaimBroken

if TYPE_CHECKING:
    from onnxslim.pipeline.data_settings import DataSettings
    from onnxslim.render.json import Json
    from onnxslim.render.junit import JunitSuite
    from onnxslim.run.requests import FloorWord
    from onnxslim.tools.claims import Claim

_WORDS = {True: "holds", False: "BROKEN", None: "not judged"}


@click.command("check", short_help=COMMANDS["check"])
@click.argument("output", callback=refuse_stream)
@click.option("--against", metavar="IN", required=True, help="The model that the run began with.")
@click.option("--report", metavar="FILE.json", required=True, help="What the run reported.")
@calib_option("The samples of the run.")
@eval_option
@data_options
@floor_options
@run_options
@provider_option
@no_latency_option
@junit_option
@overwrite_option
@json_option
def command(
    output: str,
    against: str,
    report: str,
    calib: str | None,
    evaluation: str | None,
    data: DataSettings,
    floor: bool | None,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int | None,
    provider: str | None,
    seed: int | None,
    latency: bool | None,
    junit: str | None,
    overwrite: bool,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Hold what a report claims against its files once more: exit code 4 where it does not hold.

    OUTPUT and IN are the files of the run, which are compared by sha256, run on the same data and
    timed in turn here. Floors that are given must hold beside those of the run; a run whose lossy
    steps were held to none is at fault unless --no-floor says that this is known.
    """
    from onnxslim import surveys
    from onnxslim.render.beside import JUNIT
    from onnxslim.render.json import json_text

    if junit is not None:
        check_beside({"--junit": Path(junit)}, Path(against), Path(output), overwrite=overwrite)
    given = {cast("FloorWord", name): v for name, v in limits.items() if v is not None}
    with progress() as shown:
        claims = surveys.check(
            output,
            against,
            report,
            calibration=calib,
            evaluation=evaluation,
            data=data,
            floors=given or None,
            needs_floors=floor is not False,
            threads=threads,
            provider=provider,
            seed=seed,
            input_shapes=input_shapes,
            measure=latency is not False,
            progress=shown,
        )
    if junit is not None:
        write_report(Path(junit), [_suite(output, claims)], JUNIT)
    say(json_text(_json(claims)).rstrip() if as_json else _text(claims))
    broken = [claim for claim in claims if claim.is_held is False]
    if broken:
        listed = "; ".join(f"{c.name}: claimed {c.said}, found {c.found}" for c in broken)
        raise ClaimBroken(f"`{report}` claims what does not hold: {listed}.")


def _text(claims: Sequence[Claim]) -> str:
    from onnxslim.render.tables import FigureTable

    grid = FigureTable(("claim", "claimed", "found", ""), frozenset({1, 2, 3}))
    for claim in claims:
        style = "red" if claim.is_held is False else ""
        grid.add(claim.name, claim.said, claim.found, _WORDS[claim.is_held], style=style)
    return grid.render(paper())


def _json(claims: Sequence[Claim]) -> list[Json]:
    return [
        {"claim": c.name, "holds": c.is_held, "claimed": c.said, "found": c.found} for c in claims
    ]


def _suite(output: str, claims: Sequence[Claim]) -> JunitSuite:
    from onnxslim.render.junit import JunitCase, JunitSuite

    cases = []
    for claim in claims:
        why = f"claimed {claim.said}, found {claim.found}"
        failed = why if claim.is_held is False else None
        cases.append(JunitCase(claim.name, failed=failed, skipped=_skipped(claim)))
    return JunitSuite(f"onnxslim check {output}", cases)


def _skipped(claim: Claim) -> str | None:
    return claim.found if claim.is_held is None else None
