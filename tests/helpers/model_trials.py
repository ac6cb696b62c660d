"""Random models through every lossless pass, and through random pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Final

from isolated import Stage
from random_models import drawn_model
from rewrite_trials import Failure, Mode, Refused, Subject, Trial
from trial_reduction import reduced

from onnxslim.pipeline import registry
from onnxslim.records import Fidelity

_LOSSY_SHARE: Final = 0.25
_VERIFIED_SHARE: Final = 0.2


@dataclass
class Findings:
    """What came of one model.

    Attributes:
        refused: why onnxruntime does not run the model as it is; "" where it does.
        pipelines: how many were tried.
        found: trials that fail, reduced.
    """

    refused: str = ""
    pipelines: int = 0
    found: list[tuple[Trial, Failure]] = field(default_factory=list)


@cache
def passes(*, lossless: bool) -> tuple[str, ...]:
    """Names of the passes that promise to keep outputs, or of those that do not."""
    return tuple(
        name
        for name in registry.names()
        if (registry.get(name).fidelity is not Fidelity.LOSSY) is lossless
    )


def pipelines(seed: str) -> Iterator[tuple[str, Mode]]:
    """Every lossless pass alone, lossless pipelines, and now and then a verified or lossy one."""
    rng = Random(f"{seed}/pipelines")
    lossless, lossy = passes(lossless=True), passes(lossless=False)
    for name in lossless:
        yield name, Mode.LOSSLESS
    for _ in range(2):
        yield ",".join(rng.choices(lossless, k=rng.randint(2, 6))), Mode.LOSSLESS
    if rng.random() < _VERIFIED_SHARE:
        yield rng.choice(("simplify", "raise-opset", *lossless)), Mode.VERIFIED
    if rng.random() < _LOSSY_SHARE:
        steps = [rng.choice(lossy)]
        if rng.random() < 0.5:
            steps.insert(0, "simplify")
        steps += rng.sample((*lossy, *lossless), rng.randint(0, 2))
        yield ",".join(steps), Mode.LOSSY


def try_model(seed: str, stage: Stage = lambda text: None, *, reduce: bool = True) -> Findings:
    """Draw the model of a seed, and try pipelines on it.

    Args:
        seed: decides all.
        stage: is told what comes next, in case the process dies of it.
        reduce: whether failing trials are made small.
    """
    stage("drawing")
    drawn = drawn_model(seed)
    model = drawn.model.SerializeToString()
    feeds = (*drawn.plain, *drawn.resized)
    stage("original")
    try:
        subject = Subject(model, feeds, drawn.special)
    except Refused as error:
        return Findings(refused=str(error))
    findings, seen = Findings(), set[str]()
    for pipeline, mode in pipelines(seed):
        stage(f"{mode.value} {pipeline}")
        findings.pipelines += 1
        failure = subject.failure(pipeline, mode)
        if failure is None:
            continue
        symptom = failure.kind.partition(": ")[2]
        if symptom in seen:
            continue
        seen.add(symptom)
        trial = Trial(model, feeds, drawn.special, pipeline, mode)
        findings.found.append(reduced(trial, failure) if reduce else (trial, failure))
    return findings
