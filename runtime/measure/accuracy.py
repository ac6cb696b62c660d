"""Accuracy on labelled data: top-1, or a metric that the user's own code computes.

Accuracy is a share in [0, 1], higher is better; `--max-drop 0.5` allows it to fall by 0.005.

Owns: the definition of accuracy. Not here: how far it may fall (see `pipeline.policy`).

Two kinds of evaluation:

- labelled samples (a source as in `samples.sources`, with labels): top-1;
- a function of one argument, `module:function` or a callable, which returns a share in [0, 1]:

      def accuracy(run):
          outputs = run({"input": images})   # arrays by name in, arrays by name out
          return (outputs["scores"].argmax(axis=1) == labels).mean()

  It is called once for each model. A function without arguments returns samples instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsFloat

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.runtime.measure.workload import batch_size
from onnxslim.runtime.samples import user_function
from onnxslim.runtime.samples.given import AnySource, GivenData, SampleSource
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.session import Feeds, Outputs, Session, TensorInfo
from onnxslim.services.progress import Progress

UserMetric = Callable[[Callable[[Feeds], Outputs]], SupportsFloat]
"""A metric of the user: gets a function that runs the model, returns a number (higher is
better)."""

EvaluationSource = SampleSource | UserMetric
AnyEvaluation = EvaluationSource | GivenData


@dataclass(frozen=True)
class Evaluation:
    """The evaluation data: labelled samples or a metric; exactly one of them is set."""

    name: str
    samples: Samples | None = None
    metric: Callable[..., object] | None = None

    def score(self, session: Session, *, model: Model | None = None, alone: bool = False) -> float:
        """Accuracy of the model behind `session`.

        Args:
            session: the model.
            model: the same model, whose activations bound the samples of one run.
            alone: whether to run samples one by one.

        Raises:
            UsageError: no output gives a score for every class, labels are missing, or the
                user's function failed.
            RuntimeFailure: the model does not run on the data.
        """
        if self.metric is not None:
            return _number(user_function.call(self.metric, self.name, session.run_all), self.name)
        assert self.samples is not None
        return top1(session, self.samples, model=model, alone=alone)

    def scored_output(self, session: Session) -> str | None:
        """Name of the output that labels are held against; None without labels."""
        if self.samples is None:
            return None
        for sample in self.samples.batches(1):
            return _class_scores(session.run(sample.feeds), sample.rows)[0]
        return None


def open_evaluation(
    source: AnyEvaluation, inputs: Sequence[TensorInfo], progress: Progress | None = None
) -> Evaluation:
    """Open what `--eval` or `evaluation=` names.

    Raises:
        UsageError: it cannot be read or imported.
    """
    named = _metric(source)
    if named is not None:
        return Evaluation(named[0], metric=named[1])
    samples = open_samples(source, inputs)  # type: ignore[arg-type]
    return Evaluation(samples.name, samples if progress is None else samples.told(progress))


def labelled_source(source: AnyEvaluation) -> AnySource | None:
    """The source of labelled samples that `source` is; None where it is a metric.

    Raises:
        UsageError: it cannot be imported.
    """
    return source if _metric(source) is None else None  # type: ignore[return-value]


def metric_key(source: AnyEvaluation) -> tuple[bool, str | None]:
    """Whether `source` is a metric, and its attribute `cache_key`.

    Nobody but its author knows whether a metric always measures the same. One that does can say so:
    by a text that changes whenever its figures for the same model may.

    Raises:
        UsageError: it cannot be imported.
    """
    found = _metric(source)
    key = None if found is None else getattr(found[1], "cache_key", None)
    return found is not None, key if isinstance(key, str) else None


def _metric(source: AnyEvaluation) -> tuple[str, Callable[..., object]] | None:
    """The name and the function of a metric; None where the source is one of samples."""
    if isinstance(source, GivenData):
        return _metric(source.source)
    if callable(source) and not isinstance(source, type) and _arguments(source):
        return getattr(source, "__name__", "the metric"), source
    if isinstance(source, str) and _names_function(source):
        function = user_function.load_function(source)
        if _arguments(function):
            return source, function
    return None


def top1(
    session: Session, samples: Samples, *, model: Model | None = None, alone: bool = False
) -> float:
    """Share of samples whose label has the highest score; for the arguments see `Evaluation.score`.

    Scores are the first float output with one row of two or more entries for each sample.

    Raises:
        UsageError: there is no such output, or labels are missing.
    """
    right = total = 0
    for sample in samples.batches(1 if alone else batch_size(session, samples, model)):
        if sample.labels is None:
            raise UsageError(
                f"{samples.name} has no labels, so there is no accuracy to measure. Add one class "
                "number for each sample: an array `label`, or folders of classes."
            )
        labels = _class_numbers(sample.labels, sample.rows, samples.name)
        _, scores = _class_scores(session.run(sample.feeds), sample.rows)
        right += int(np.count_nonzero(scores.argmax(axis=1) == labels))
        total += sample.rows
    return right / total


def _class_scores(outputs: Outputs, rows: int) -> tuple[str, np.ndarray]:
    """The output that holds class scores, and its values (rows, classes)."""
    for name, array in outputs.items():
        if not _is_float(array) or array.ndim < 2 or array.shape[0] != rows:
            continue
        classes = array.shape[1]
        if classes > 1 and array.size == rows * classes:  # any further axes have size 1
            return name, array.reshape(rows, classes)
    found = ", ".join(f"`{k}` {v.dtype.name}{list(v.shape)}" for k, v in outputs.items())
    raise UsageError(
        f"No output holds class scores for {rows} samples; the outputs are {found}. Give a metric "
        "of your own as `module:function`."
    )


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.isbuiltin == 2


def _class_numbers(labels: np.ndarray, rows: int, name: str) -> np.ndarray:
    """Labels as class numbers; one-hot rows are converted."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels.argmax(axis=1)
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iu" or len(labels) != rows:
        raise UsageError(
            f"The labels of {name} are {labels.dtype.name}, {len(labels)} for {rows} samples; "
            "one integer for each sample is needed."
        )
    return labels


def _names_function(source: str) -> bool:
    return not Path(source).exists() and user_function.is_function_name(source)


def _arguments(function: Callable[..., object]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return sum(p.default is p.empty and p.kind not in named for p in parameters)


def _number(value: object, name: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number <= 1:  # NaN is not
        percent = " Divide percents by 100." if 1 < number <= 100 else ""
        raise UsageError(
            f"`{name}` returned {value!r}; a metric must return a share in [0, 1], higher is "
            f"better.{percent}"
        )
    return number
