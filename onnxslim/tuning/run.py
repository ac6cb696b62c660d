"""A request of `tune` from start to end: each family alone, the table, the search, confirmation.

    alone ─▶ trained ─▶ table ─▶ proposals ─▶ front
                                                └─▶ confirmed on samples that chose nothing ─▶ files

Read `Tuner.run` first.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onnxslim.details import FrontPoint, TrialRow, Tuning
from onnxslim.errors import FloorMissed
from onnxslim.io import files
from onnxslim.io.staging import stage_file
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.policy import Goal, Policy
from onnxslim.report import Report
from onnxslim.run.output import write_output
from onnxslim.run.prepared import Attempt, PreparedRun
from onnxslim.services.progress import TimeOver
from onnxslim.tuning.aims import Aim, Measure
from onnxslim.tuning.confirmation import Confirmation, stricter
from onnxslim.tuning.families import Role, families_for
from onnxslim.tuning.from_table import TableChoice, table_for
from onnxslim.tuning.front import equally_fast, non_dominated
from onnxslim.tuning.study import SharedStudy, Space
from onnxslim.tuning.trained import TrainedSearch
from onnxslim.tuning.trials import TrialOutcome, TrialRunner
from onnxslim.tuning.workers import is_dead, worker_name

if TYPE_CHECKING:
    pass

_GRACE: Final = 1.1  # times the time that was given, after which a trial is interrupted
_TABLE_SHARE: Final = 0.25  # of the time, for the table
_STRICTER: Final = 3  # answers that are looked for again under stricter floors
_CLOSER: Final = 0.95  # share of the floors' use that the next candidate may have
_WITHIN_REACH: Final = (0.75, 0.5, 0.25)  # strengths of a pass that does nothing at its hardest
_TRIALS: Final = 60
_FRONT_TABLE: Final = "front.csv"


@dataclass(frozen=True)
class TuneRequest:
    """What is searched for, and for how long.

    Attributes:
        aim: what is to become small.
        policy: floors and goal, which each step is held to.
        seconds: after which no further trial begins; one in hand may take a tenth more.
        trials: the largest number of trials.
        allow, deny: names of passes.
        study: the journal; None: in memory.
        seed: of the proposals.
        is_worker: whether this process only takes part in a search: it writes nothing.
    """

    aim: Aim
    policy: Policy
    seconds: float
    trials: int = _TRIALS
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    study: str | None = None
    seed: int = 0
    is_worker: bool = False

    @property
    def step_policy(self) -> Policy:
        """How steps are judged: bytes may grow where latency alone counts.

        What passes do without training, trials of those passes say.
        """
        is_alone = self.aim.goal is Measure.LATENCY and not any(
            target.measure is Measure.BYTES for target in self.aim.targets
        )
        return replace(
            self.policy, goal=Goal.LATENCY if is_alone else Goal.BOTH, keeps_unmended=False
        )


class Tuner:
    """A search for the pipeline that a request asks for.

    Args:
        request: what is searched for.
        run: the model with the samples that choose; its report says what they are.
        confirming: the model with the samples that choose nothing; None: there are none.
    """

    def __init__(
        self, request: TuneRequest, run: PreparedRun, confirming: PreparedRun | None
    ) -> None:
        self.request, self.run_, self.confirming = request, run, confirming
        self.runner = TrialRunner(run, request.aim, request.step_policy)
        settings = run.settings
        self.families = families_for(
            request.aim.goal,
            allowed=request.allow,
            denied=request.deny,
            has_samples=settings.calibration is not None,
            trains=settings.training is not None,
            is_timed=settings.measure,
        )
        self.started = time.monotonic()
        self.notes: list[str] = []
        self._table = TableChoice()
        self.first = tuple(parse_pipeline("simplify").passes)
        self.shared = SharedStudy(self._name(), request.study, request.seed)

    @property
    def seconds(self) -> float:
        """Since the search began."""
        return time.monotonic() - self.started

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return self.seconds >= self.request.seconds

    def run(self) -> tuple[Attempt, Report]:
        """Search, confirm, and make the answer again from its pipeline.

        Returns:
            The answer, and its report.

        Raises:
            FloorMissed: nothing that was tried holds the floors on samples that chose nothing, or
                the targets are out of reach; the best there is has been found all the same.
        """
        # a trial that the end of the time interrupts is given back when the search goes on
        limit = self.started + _GRACE * self.request.seconds
        with suppress(TimeOver), self.run_.settings.progress.until(limit):
            self._search_all()
        return self._answer()

    def _search_all(self) -> None:
        """All stages in turn, as far as the time allows."""
        self.shared.give_back(is_dead)
        self.shared.enqueue(Space(self.first, self.families).alone())
        self._search(self.request.trials, until_proposals=True)
        if not self.request.is_worker:
            self._search_trained()
            self._choose_from_table()
        self.shared.enqueue(self._space().combined(self._ranked()))
        self._search(self.request.trials, until_proposals=False)

    # ------------------------------------------------------------------ trials

    def _search(self, most: int, *, until_proposals: bool) -> None:
        """Run trials; first only those that were set, then those that are proposed."""
        alone = len(self._space().alone())
        while not self.is_over:
            done = len(self.shared.outcomes())
            if done >= most or (until_proposals and done >= alone):
                return
            self._run_next(is_alone=until_proposals)

    def _run_next(self, *, is_alone: bool = False) -> None:
        """Run the trial that comes next: one that was set, or one that is proposed."""
        self.shared.give_back(is_dead)
        trial = self.shared.ask(worker_name())
        steps = self._space().proposed(trial)
        with self.run_.settings.progress.step(f"trial {trial.number + 1}: {_spelled(steps)}"):
            outcome = self._outcome(steps, is_alone=is_alone)
        self.shared.tell(trial, outcome, self.runner.score(outcome))

    def _at(self, point: Mapping[str, Any]) -> TrialOutcome | None:
        """What comes of a point; None: the time is over."""
        self.shared.enqueue([point])
        while (found := self.shared.outcome_at(point)) is None:
            if self.is_over:
                return None
            self._run_next()  # another process may have taken the point: then another trial
        return found

    def _outcome(self, steps: Sequence[Pass], *, is_alone: bool) -> TrialOutcome:
        """What comes of a pipeline; a pass alone gets weaker until its budget is within reach."""
        outcome = self.runner.outcome(steps)
        for share in _WITHIN_REACH if is_alone else ():
            weaker = steps[-1].softened(share)
            if outcome.kept or outcome.error is not None or weaker is None:
                break
            outcome = self.runner.outcome([*steps[:-1], weaker])
        return outcome

    def _space(self) -> Space:
        """The families, each at most as hard as the floors allow it alone."""
        plain = Space(self.first, self.families)
        alone = len(plain.alone())
        outcomes = self.shared.outcomes()
        if len(outcomes) < alone:
            return plain
        spelled: dict[str, str] = {}
        for number, outcome in outcomes:
            if number < alone:
                spelled |= outcome.kept or {}
        capped = {}
        for family in self.families:
            if family.name in spelled:
                (kept,) = parse_pipeline(spelled[family.name]).passes
                capped[family.name] = replace(family, hardest=kept)
        return replace(plain, capped=capped)

    def _ranked(self) -> list[str]:
        """The families that did something alone, the best first."""
        alone = len(Space(self.first, self.families).alone())
        found = [
            (self.runner.score(outcome), name)
            for number, outcome in self.shared.outcomes()
            if number < alone
            for name in outcome.kept or ()
        ]
        return [name for _, name in sorted(found)]

    def _search_trained(self) -> None:
        """How hard the structure may be changed where training follows."""
        space = self._space()
        if space.of(Role.TRAINING):
            TrainedSearch(space, self._at, self.runner.score).search(self._ranked())

    def _choose_from_table(self) -> None:
        """Measure the table, choose from it, and correct it by whole models."""
        left = self.request.seconds - self.seconds
        if left <= 0 or not self.families:
            return
        table = table_for(self.runner, self.first, self.families, _TABLE_SHARE * left)
        if table.left_out:
            self.notes.append(
                f"The table of variants lacks {len(table.left_out)}, for which there was no time."
            )
        self._table = TableChoice(table)
        self._table.improve(self.runner, self.first, self.families, lambda: self.is_over)

    # ------------------------------------------------------------------ the answer

    def _answer(self) -> tuple[Attempt, Report]:
        outcomes = [*(found for _, found in self.shared.outcomes()), *self._table.outcomes]
        plain, _ = self.runner.tried(parse_pipeline(_spelled(self.first)))
        good = [outcome for outcome in (*outcomes, plain) if outcome.holds]
        ranked = self._by_loop(sorted(good, key=self.runner.score))
        if not ranked:
            raise FloorMissed("Nothing that was tried holds the floors. Give weaker ones.")
        answer, attempt, why = self._confirmed(ranked, outcomes)
        if answer is None or attempt is None:
            answer = plain
            _, attempt = self.runner.tried(parse_pipeline(plain.resolved))
            assert attempt is not None
        report = self.run_.report(attempt, "tune")
        report.tuning = self._tuning(answer, outcomes)
        report.notes += self.notes
        missed = self.runner.misses(answer)
        if why is not None and answer is plain:
            report.floors_missed.append(
                f"no candidate holds the floors on the samples that chose nothing, so none was "
                f"taken: {why}"
            )
        elif missed > 0:
            report.floors_missed.append(self._short_of(answer))
        return attempt, report

    def _confirmed(
        self, ranked: Sequence[TrialOutcome], outcomes: list[TrialOutcome]
    ) -> tuple[TrialOutcome | None, Attempt | None, str | None]:
        """The best outcome that holds the floors on the samples that chose nothing.

        Args:
            ranked: those that hold them on the others, the best first.
            outcomes: of the whole search; those that are looked for under stricter floors come to
                it.

        Returns:
            The outcome, its model, and which floor the last one missed that was not confirmed.
        """
        confirmation = Confirmation(self.confirming, self.request.policy)
        left, why = list(ranked), None
        # by the passes, the least use of the floors that was not confirmed: what passes that fit
        # weights to the samples use says nothing of others
        failed: dict[tuple[str, ...], float] = {}
        again = _STRICTER
        while left:
            candidate = left.pop(0)
            names = tuple(sorted(candidate.kept or ()))
            if candidate.use > _CLOSER * failed.get(names, float("inf")):
                continue  # as far away as one that was not confirmed
            made, attempt = self.runner.tried(parse_pipeline(candidate.resolved))
            if attempt is None or made.file_bytes != candidate.file_bytes:
                self.notes.append(
                    f"`{_plain(candidate.resolved)}` did not come out again as it was found, so it "
                    "was not taken."
                )
                continue
            verdict = confirmation.verdict(attempt.model)
            if verdict.why is None:
                return candidate, attempt, None
            why, failed[names] = verdict.why, candidate.use
            self.notes.append(
                f"`{_plain(candidate.resolved)}` is better on the samples that choose, and misses "
                f"a floor on the others: {why}."
            )
            floors = stricter(self.runner.floors, candidate.use, verdict.use)
            pipeline = parse_pipeline(candidate.pipeline)
            if again and floors is not None and not _trains(pipeline.passes):
                again -= 1
                closer, _ = self.runner.tried(pipeline, floors=floors)
                outcomes.append(closer)
                if closer.holds:
                    left = sorted([closer, *left], key=self.runner.score)
        return None, None, why

    def _by_loop(self, ranked: list[TrialOutcome]) -> list[TrialOutcome]:
        """The outcomes, the best first; of those that are equally fast, the fastest in a loop.

        Latency is measured with other data in the caches, where overhead counts most. Models that
        are alike there may differ where weights and code stay in the caches.
        """
        stopwatch, aim = self.run_.stopwatch, self.request.aim
        if stopwatch is None or aim.goal is not Measure.LATENCY or aim.targets or not ranked:
            return ranked
        alike = equally_fast(ranked)
        made = [self.runner.tried(parse_pipeline(one.resolved))[1] for one in alike]
        models = [attempt.model for attempt in made if attempt is not None]
        if len(models) < max(2, len(alike)):
            return ranked
        with self.run_.settings.progress.step("timing those that are equally fast in a loop"):
            pairs = stopwatch.looped(self.run_.source, models)
        order = sorted(range(len(alike)), key=lambda place: -pairs[place].ratio)
        return [*(alike[place] for place in order), *ranked[len(alike) :]]

    def _short_of(self, answer: TrialOutcome) -> str:
        whole, parts = self.runner.whole, []
        for target in self.request.aim.targets:
            now, before = answer.figures.of(target.measure), whole.of(target.measure)
            if now is None or before is None or now <= target.limit(before):
                continue
            limit = target.limit(before)
            unit = "ms" if target.measure is Measure.LATENCY else "bytes"
            parts.append(f"{target.measure} {now:,.4g} {unit} where {limit:,.4g} was asked for")
        return (
            f"no trial of {len(self.shared.outcomes())} reaches the targets under the floors; the "
            f"nearest, which was written, has {' and '.join(parts)}"
        )

    def _tuning(self, answer: TrialOutcome, outcomes: Sequence[TrialOutcome]) -> Tuning:
        good = [outcome for outcome in outcomes if outcome.holds]
        front = non_dominated([(outcome, _front_figures(outcome)) for outcome in good])
        if answer not in front:
            front.append(answer)
        front.sort(key=lambda outcome: outcome.file_bytes)
        rows = [
            TrialRow(
                number,
                outcome.pipeline,
                _state(outcome),
                outcome.file_bytes or None,
                outcome.ms,
                outcome.use,
                outcome.seconds,
            )
            for number, outcome in enumerate(outcomes)
        ]
        return Tuning(
            str(self.request.aim),
            _floors_text(self.runner.floors),
            len(outcomes),
            self.seconds,
            [self._point(outcome, answer) for outcome in front],
            self._table.table.entries(self._table.chosen),
            self._table.predicted,
            self._table.measured,
            rows,
        )

    def _point(self, outcome: TrialOutcome, answer: TrialOutcome) -> FrontPoint:
        return FrontPoint(
            outcome.pipeline,
            outcome.resolved,
            outcome.file_bytes,
            outcome.ms,
            outcome.speedup,
            outcome.closeness,
            outcome.closeness_unit,
            outcome.accuracy,
            outcome is answer,
        )

    def write_front(self, folder: Path, tuning: Tuning) -> Tuning:
        """Write the models of the front, and `front.csv`, which lists them.

        Returns:
            The search with the paths of the files.
        """
        points = []
        files.make_folders(folder)
        for number, point in enumerate(tuning.front, 1):
            _, attempt = self.runner.tried(parse_pipeline(point.pipeline))
            path = folder / f"{number:02d}.onnx"
            if attempt is not None:
                write_output(self.run_, attempt, self.run_.report(attempt, "tune"), path)
                points.append(replace(point, path=str(path)))
            else:
                points.append(point)
        with stage_file(folder / _FRONT_TABLE) as staged:
            staged.write([_table_of(points).encode()])
            staged.commit()
        return replace(tuning, front=points)

    def _name(self) -> str:
        """What the search is about: equal requests go on with the same trials."""
        run, request = self.run_, self.request
        bearing = [
            run.source.origin.sha256,
            request.aim.goal,
            _floors_text(request.policy.floors),
            sorted(request.allow),
            sorted(request.deny),
            sorted(run.settings.data_sha256().items()),
            run.settings.threads,
            run.settings.measure,
            request.seed,
        ]
        return hashlib.sha256(json.dumps(bearing, default=str).encode()).hexdigest()[:16]


def _trains(steps: Sequence[Pass]) -> bool:
    """Whether a step trains, so that stricter floors would drop it, not weaken it."""
    return any(stage.trains for step in steps for stage in step.unrolled())


def _state(outcome: TrialOutcome) -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error}"
    return "held" if outcome.holds else "missed a floor"


def _table_of(points: Sequence[FrontPoint]) -> str:
    """The points as comma-separated values, a line each."""
    text = io.StringIO()
    rows = [asdict(point) for point in points]
    table = csv.DictWriter(text, [one.name for one in fields(FrontPoint)], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _front_figures(outcome: TrialOutcome) -> tuple[float, ...]:
    return (float(outcome.file_bytes), outcome.ms if outcome.ms is not None else 0.0, outcome.use)


def _floors_text(floors: Floors) -> str:
    words = ", ".join(f"{name} {value:g}" for name, value in floors.named.items())
    return f"default: {words}" if floors.is_default else words


def _plain(resolved: str) -> str:
    """The steps of a resolved pipeline."""
    return _spelled(parse_pipeline(resolved).passes)


def _spelled(steps: Sequence[Pass]) -> str:
    return ",".join(map(str, steps))
