"""What the experiments share: plans of rows, one command of compression, what rows tell.

A row is one setting on one seed: of the net, of the passes, of the order of samples. Whatever was
measured before stays, so a run that ends early goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.models.small_nets import NETS, Mnist, SmallNet, error_ratio
from benchmarks.models.zoo import cache_folder
from benchmarks.reporting import CONSOLE, Found, read, saved
from onnxslim import api
from onnxslim.io.model import Model
from onnxslim.report import Report
from onnxslim.run.record import processor_name

KEYS: Final = ("row", "seed")
CALIBRATION: Final = 1000  # pictures that closed forms are fitted to
SECONDS: Final = 4.0  # of timing, for a pair of models

Arrays = Mapping[str, np.ndarray]
Given = Arrays | Sequence[Arrays]  # all samples together, or each alone


@dataclass(frozen=True)
class Plan:
    """A row that is to be measured.

    Attributes:
        row: its name, unique in the experiment.
        seed: of everything.
        measure: gives what is found.
    """

    row: str
    seed: int
    measure: Callable[[], Found]


def measured(experiment: str, plans: Iterable[Plan], wanted: str, *, again: bool) -> None:
    """Measure the plans whose rows match `wanted`, and save each as it comes."""
    saved(result_of(experiment), _rows(experiment, plans, wanted, again=again), replacing=KEYS)


def result_of(experiment: str) -> str:
    """The name of the file of results."""
    return f"retraining_{experiment}"


def rows_of(experiment: str) -> list[Found]:
    """The rows measured so far."""
    return list((read(result_of(experiment)) or {"rows": ()})["rows"])


def _rows(experiment: str, plans: Iterable[Plan], wanted: str, *, again: bool) -> Iterator[Found]:
    known = {tuple(row[key] for key in KEYS) for row in rows_of(experiment)}
    for plan in plans:
        if not fnmatchcase(plan.row, wanted) or (not again and (plan.row, plan.seed) in known):
            continue
        CONSOLE.print(f"{plan.row}, seed {plan.seed}", soft_wrap=True)
        command = (
            f"python -m benchmarks.retraining measure {experiment} --rows '{plan.row}' "
            f"--seed {plan.seed}"
        )
        about = {"row": plan.row, "seed": plan.seed, "command": command}
        yield {**about, "processor": processor_name(), **plan.measure()}


# ---------------------------------------------------------------------------- compression


@dataclass(frozen=True)
class Compressed:
    """A file that a pipeline made.

    Attributes:
        pipeline: what was run.
        model: the result.
        report: of the run.
        cpu: processor seconds of the whole run, one thread.
    """

    pipeline: str
    model: Model
    report: Report
    cpu: float

    def about(self) -> dict[str, Any]:
        """What a row tells of the run."""
        notes = [note for step in self.report.steps for note in step.notes]
        skips = [skip.why for step in self.report.steps for skip in step.skips]
        return {
            "pipeline": self.pipeline,
            "cpu": round(self.cpu, 1),
            "said": [text for text in (*notes, *skips) if "finetune" in text or "epochs" in text],
        }


def compressed(
    file: Path,
    pipeline: str,
    *,
    calibration: Given | None = None,
    training: Given | None = None,
    seed: int = 0,
) -> Compressed:
    """Run a pipeline with one thread, no floors, no proof and no timing: figures come later."""
    started = time.process_time()
    model, report = api.compress(
        file,
        passes=pipeline,
        calibration=training if calibration is None else calibration,
        train=training,
        floors=None,
        force=True,
        verify=False,
        measure=False,
        threads=1,
        seed=seed,
    )
    return Compressed(pipeline, model, report, time.process_time() - started)


def kept(name: str, make: Callable[[], Model]) -> Path:
    """The file of a model that several rows begin with, made when it is not there yet."""
    target = cache_folder() / "retraining" / f"{name}.onnx"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        partial.write_bytes(make().to_bytes())
        partial.rename(target)
    return target


def times_faster(original: Path, model: Model, sample: Arrays) -> list[float] | None:
    """Ratio of latencies, a sample at a time, in turn, with its 95 % interval."""
    timed = api.bench_models(
        [original, model], calibration=[dict(sample)], threads=1, seconds=SECONDS
    )
    pair = timed[1][2]
    if pair is None:
        return None
    return [round(value, 3) for value in (pair.ratio, pair.low, pair.high)]


# ---------------------------------------------------------------------------- small nets


@dataclass(frozen=True)
class Subject:
    """A small net of one seed, with the parts of its data.

    Attributes:
        net: which one.
        seed: that it was trained from.
    """

    net: SmallNet
    seed: int

    @classmethod
    def of(cls, name: str, seed: int) -> Subject:
        """By the name of the net."""
        return cls(NETS[name], seed)

    @property
    def data(self) -> Mnist:
        """All pictures, with labels."""
        return self.net.data()

    @property
    def original(self) -> Path:
        """The trained net."""
        return self.net.file(self.seed)

    def training(self, count: int, *, labels: bool = False) -> dict[str, np.ndarray]:
        """The first training pictures."""
        some = self.data.train.first(count)
        return {"image": some.image, **({"label": some.label} if labels else {})}

    def calibration(self, count: int = CALIBRATION) -> dict[str, np.ndarray]:
        """The last training pictures, for closed forms."""
        return {"image": self.data.train.image[-count:]}

    def error(self, model: Path | Model) -> float:
        """Error on all test pictures, in percent; nothing else sees them."""
        source = model if isinstance(model, Path) else model.to_bytes()
        return round(100 * float(error_ratio(source, self.data.test)), 2)

    def sample(self) -> dict[str, np.ndarray]:
        """One picture, to time models on."""
        return {"image": self.data.test.image[:1]}
