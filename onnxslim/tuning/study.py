"""The search over pipelines: Optuna proposes strengths, whole models answer.

A trial is a point: the strength of each family that changes the structure, one family of numbers,
exits or none. Every answer holds the floors, since steps that would not are weakened when they run.
What is known of a trial lies in the study, so a search goes on where it ended, and several
processes share one by its journal (see `workers`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onnxslim.errors import UsageError
from onnxslim.io import files
from onnxslim.io.staging import stage_file
from onnxslim.pipeline.passes import Pass
from onnxslim.tuning.families import Family, Role
from onnxslim.tuning.trials import TrialOutcome

if TYPE_CHECKING:
    import optuna

OUTCOME: Final = "outcome"
"""Attribute of a trial: what came of it."""

WORKER: Final = "worker"
"""Attribute of a trial: the process that runs it."""

_NONE: Final = "none"
_NUMBERS: Final = "numbers"
_EXITS: Final = "exits"
_TRAINS: Final = "finetune"
_SHARED: Final = (0.85, 0.65, 0.95)  # strengths of families that leave room for others
_BEST: Final = 2  # families of a role that are combined first
_LEAST_STRENGTH: Final = 0.08  # below it a family is left out
_WARM: Final = 12  # trials before proposals are modelled


@dataclass(frozen=True)
class Space:
    """The pipelines that can be proposed.

    Attributes:
        first: steps that every pipeline begins with.
        families: that may follow, in order; the same in all trials of a study.
        capped: by name, families as hard as the floors allow them alone; those that are not in it
            do nothing, and are left out. None: nothing is known of that yet.
    """

    first: Sequence[Pass]
    families: Sequence[Family]
    capped: Mapping[str, Family] | None = None

    def of(self, role: Role) -> list[Family]:
        """The families of a role."""
        return [family for family in self.families if family.role is role]

    def taken(self, family: Family) -> Family | None:
        """A family as hard as it may be; None where it is left out."""
        return family if self.capped is None else self.capped.get(family.name)

    def _off(self) -> dict[str, Any]:
        """The point at which no family is taken."""
        off: dict[str, Any] = {family.name: 0.0 for family in self.of(Role.STRUCTURE)}
        return off | {_NUMBERS: _NONE, _EXITS: False, _TRAINS: False}

    def alone(self) -> list[dict[str, Any]]:
        """The points at which each family is alone, at its hardest."""
        off = self._off()
        numbers = self.of(Role.NUMBERS)
        # those that take least time come first
        points = [off | {_NUMBERS: family.name} for family in numbers if not family.is_slow]
        points += [off | {family.name: 1.0} for family in self.of(Role.STRUCTURE)]
        if self.of(Role.EXITS):
            points.append(off | {_EXITS: True})
        return points + [off | {_NUMBERS: family.name} for family in numbers if family.is_slow]

    def combined(self, ranked: Sequence[str]) -> list[dict[str, Any]]:
        """Points at which the families that are best alone share the floors.

        Args:
            ranked: names of families, the best first.
        """
        rank = {name: place for place, name in enumerate(ranked)}

        def best(role: Role) -> list[Family]:
            known = [f for f in self.of(role) if f.name in rank and self.taken(f) is not None]
            return sorted(known, key=lambda family: rank[family.name])

        structure, numbers, exits = best(Role.STRUCTURE), best(Role.NUMBERS), best(Role.EXITS)
        off = self._off()
        points = []
        for strength in _SHARED:
            for family in structure[:_BEST]:
                points += [
                    off | {family.name: strength, _NUMBERS: other.name} for other in numbers[:_BEST]
                ]
                points += [off | {family.name: strength, _EXITS: True} for _ in exits]
            if len(structure) >= _BEST:
                both = {family.name: strength for family in structure[:_BEST]}
                points += [off | both | {_NUMBERS: other.name} for other in numbers[:1]]
                points.append(off | both)
        return points

    def trained(self, strengths: Mapping[str, float], numbers: str = _NONE) -> dict[str, Any]:
        """The point at which the structure is changed by these strengths, and trained."""
        return self._off() | {_NUMBERS: numbers, _TRAINS: True} | dict(strengths)

    def proposed(self, trial: optuna.Trial) -> list[Pass]:
        """The pipeline of a trial."""
        steps = list(self.first)
        training = self.of(Role.TRAINING)
        trains = trial.suggest_categorical(_TRAINS, [False, True]) and bool(training)
        for family in self.of(Role.STRUCTURE):
            strength = trial.suggest_float(family.name, 0.0, 1.0)
            # what is trained behind it may be harder than it could be alone
            taken = family if trains else self.taken(family)
            step = None
            if taken is not None and strength >= _LEAST_STRENGTH:
                step = taken.at(strength)
            steps += [] if step is None else [step]
        steps += [training[0].hardest] if trains and len(steps) > len(self.first) else []
        numbers = {family.name: family for family in self.of(Role.NUMBERS)}
        chosen = numbers.get(trial.suggest_categorical(_NUMBERS, [_NONE, *numbers]))
        last = [chosen] if chosen is not None else []
        last += self.of(Role.EXITS) if trial.suggest_categorical(_EXITS, [False, True]) else []
        capped = (self.taken(family) for family in last)
        return [*steps, *(family.hardest for family in capped if family is not None)]


class SharedStudy:
    """Trials of one search, in memory or in a journal that several processes share.

    Args:
        name: of the search: what it is about; a journal may hold several.
        journal: its file, or an URL of a storage that Optuna takes; None: in memory.
        seed: of the proposals.

    Raises:
        UsageError: the journal is none.
    """

    def __init__(self, name: str, journal: str | None, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._optuna = optuna
        sampler = optuna.samplers.TPESampler(
            multivariate=True, constant_liar=True, n_startup_trials=_WARM, seed=seed
        )
        try:
            self.study = optuna.create_study(
                storage=_storage(journal), study_name=name, sampler=sampler, load_if_exists=True
            )
        except Exception as error:
            raise UsageError(
                f"The study `{journal}` cannot be opened: {error}. Give the file of a journal, or "
                "an URL of a storage that Optuna takes."
            ) from error

    def enqueue(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Have these points tried before any that are proposed; each once."""
        for point in points:
            self.study.enqueue_trial(dict(point), skip_if_exists=True)

    def ask(self, worker: str) -> optuna.Trial:
        """The next trial, marked as that of a process."""
        trial = self.study.ask()
        trial.set_user_attr(WORKER, worker)
        return trial

    def tell(self, trial: optuna.Trial, outcome: TrialOutcome, score: float) -> None:
        """Note what came of a trial."""
        trial.set_user_attr(OUTCOME, outcome.to_json())
        if score == float("inf"):
            self.study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial, score)

    def outcomes(self) -> list[tuple[int, TrialOutcome]]:
        """What came of each trial that ended, with its number."""
        return [
            (trial.number, TrialOutcome.of_json(trial.user_attrs[OUTCOME]))
            for trial in self.study.get_trials(deepcopy=False)
            if OUTCOME in trial.user_attrs
        ]

    def outcome_at(self, point: Mapping[str, Any]) -> TrialOutcome | None:
        """What came of a point; None: no trial of it has ended."""
        for trial in self.study.get_trials(deepcopy=False):
            if OUTCOME in trial.user_attrs and trial.params == point:
                return TrialOutcome.of_json(trial.user_attrs[OUTCOME])
        return None

    def give_back(self, is_dead: Callable[[str, float], bool]) -> int:
        """Have trials of processes that died tried again.

        Args:
            is_dead: whether the process of this name, whose trial began so many seconds ago, died.

        Returns:
            How many trials were given back.
        """
        state = self._optuna.trial.TrialState
        count = 0
        for trial in self.study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            worker = str(trial.user_attrs.get(WORKER, ""))
            assert trial.datetime_start is not None
            age = time.time() - trial.datetime_start.timestamp()
            if not is_dead(worker, age):
                continue
            try:
                self.study.tell(trial.number, state=state.FAIL)
            except ValueError:  # another process was quicker
                continue
            if trial.params:
                self.study.enqueue_trial(trial.params)
            count += 1
        return count


def _storage(journal: str | None) -> Any:
    if journal is None or "://" in journal:
        return journal
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    path = Path(journal)
    files.make_folders(path.parent)
    lock = JournalFileSymlinkLock(journal)
    if path.exists():
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(journal, lock_obj=lock))


def _mend(journal: Path) -> None:
    """Drop a last line that a process did not write to its end; Optuna would add to it."""
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with stage_file(journal) as staged:
            staged.write([whole])
            staged.commit()
