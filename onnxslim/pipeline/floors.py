"""The limits on what lossy passes may cost, and which of them a candidate misses.

A user sets limits, or the default ones apply, which depend on what an output is and on what it can
be judged by: `default_floors`.

Owns: the question "does this candidate hold the floors?" and the sentence that answers it. Not
here: when a step is kept (see `policy`); measuring (see `report.Drift` and
`services.calibration.OutputDistance`, whose figures these functions take).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from onnxslim.errors import UsageError
from onnxslim.records import OutputKind


class Figures(Protocol):
    """How far one output is from its reference; see `report.Drift`."""

    @property
    def kind(self) -> OutputKind:
        """What the values are."""

    @property
    def sqnr_db(self) -> float:
        """Signal to noise in dB."""

    @property
    def agreement(self) -> float | None:
        """Share in [0, 1] of equal answers; None where there are none."""

    @property
    def mean_cosine(self) -> float | None:
        """Mean cosine of rows; None where their direction is not what counts."""

    @property
    def least_cosine(self) -> float | None:
        """Least cosine of rows; None where their direction is not what counts."""

    @property
    def mean_kl(self) -> float | None:
        """Mean Kullback-Leibler divergence of rows in nats; None where they are no token logits."""

    @property
    def largest_kl(self) -> float | None:
        """Largest Kullback-Leibler divergence of a row in nats; None as above."""


class EstimatedFigures(Figures, Protocol):
    """The same of few samples, with an estimate that is more precise than counting."""

    @property
    def expected_agreement(self) -> float | None:
        """The agreement that is expected of more samples."""


_ANSWERS: Final = frozenset(k for k in OutputKind if k.is_scores or k is OutputKind.DISCRETE)
_ALL_KINDS: Final = frozenset(OutputKind) - {OutputKind.DISCRETE}


@dataclass(frozen=True)
class Floors:
    """Limits on what lossy passes may cost; None: no such floor.

    Attributes:
        max_drop: points of accuracy (0.5 is half a percentage point) that may be lost.
        min_agreement: share in [0, 1] of answers that must stay those of the input model: top-1
            answers of classes and token logits, equal values of integers.
        min_sqnr_db: signal to quantization noise ratio in dB of every output of `sqnr_kinds`.
        min_cosine: mean over the rows of an embedding, or of hidden states, of their cosine with
            the original's.
        min_row_cosine: that cosine of every single row.
        max_kl: mean over the rows of token logits of the Kullback-Leibler divergence from the
            original's probabilities, in nats.
        max_row_kl: that divergence of every single row.
        sqnr_kinds: the kinds of outputs that `min_sqnr_db` is for.
        answer_kinds: the kinds of outputs that `min_agreement` is for.
        is_default: whether nobody asked for these floors.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_sqnr_db: float | None = None
    min_cosine: float | None = None
    min_row_cosine: float | None = None
    max_kl: float | None = None
    max_row_kl: float | None = None
    sqnr_kinds: frozenset[OutputKind] = _ALL_KINDS
    answer_kinds: frozenset[OutputKind] = _ANSWERS
    is_default: bool = False

    @property
    def limits_outputs(self) -> bool:
        """Whether any floor is held by comparing outputs."""
        rows = self.min_cosine, self.min_row_cosine, self.max_kl, self.max_row_kl
        return any(x is not None for x in (self.min_agreement, self.min_sqnr_db, *rows))

    @property
    def limits_anything(self) -> bool:
        """Whether there is any floor."""
        return self.limits_outputs or self.max_drop is not None

    @property
    def named(self) -> dict[str, float]:
        """The floors that are set, by name of the option of the command."""
        limits = {
            "max-drop": self.max_drop,
            "min-agreement": self.min_agreement,
            "min-sqnr": self.min_sqnr_db,
            "min-cosine": self.min_cosine,
            "min-row-cosine": self.min_row_cosine,
            "max-kl": self.max_kl,
            "max-row-kl": self.max_row_kl,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}

    def tightened(self, share: float) -> Floors:
        """Floors of which a share of what these allow is all that may be used; see `share_used`."""

        def nearer_one(least: float | None) -> float | None:
            return None if least is None else 1 - (1 - least) * share

        def less(most: float | None) -> float | None:
            return None if most is None else most * share

        power = 10 * math.log10(share)
        return replace(
            self,
            max_drop=less(self.max_drop),
            min_agreement=nearer_one(self.min_agreement),
            min_sqnr_db=None if self.min_sqnr_db is None else self.min_sqnr_db - power,
            min_cosine=nearer_one(self.min_cosine),
            min_row_cosine=nearer_one(self.min_row_cosine),
            max_kl=less(self.max_kl),
            max_row_kl=less(self.max_row_kl),
        )

    def source(self, option: str) -> str:
        """How a message names a floor: `option`, or that it is the default one."""
        return "the default floor" if self.is_default else option


DEFAULT: Final = Floors(
    min_agreement=0.9,
    min_sqnr_db=10.0,
    min_cosine=0.95,
    min_row_cosine=0.8,
    max_kl=0.1,
    max_row_kl=2.0,
    sqnr_kinds=frozenset({OutputKind.VALUES}),
    answer_kinds=_ANSWERS - {OutputKind.TOKEN_LOGITS},  # of which several are often as good
    is_default=True,
)
"""The floors where the user set none and outputs are judged on the user's samples."""

DEFAULT_DROP: Final = 2.0  # points of accuracy
SEEDED_SQNR_DB: Final = 10.0  # of classes, on inputs that are made up
SEEDED_AGREEMENT: Final = 0.5  # there are few such inputs


ALLOWING: Final = (
    "To allow it all the same, give --no-floor, or a floor of your own in place of the default "
    "one, such as --min-agreement 0.8, --min-sqnr 6, --min-cosine 0.9, --max-kl 1 or, with --eval, "
    "--max-drop 5."
)
"""What a user can do about a default floor that a step missed."""


@dataclass(frozen=True)
class JudgedBy:
    """What the outputs of a run are judged by.

    Attributes:
        samples: whether outputs are compared on samples of the user, instead of seeded inputs.
        labels: whether accuracy is measured on labels.
        metric: whether a figure of the user's own code is measured.
    """

    samples: bool = False
    labels: bool = False
    metric: bool = False

    @property
    def is_real(self) -> bool:
        """Whether anything is known of the data that the model is for."""
        return self.samples or self.labels or self.metric


def default_floors(by: JudgedBy) -> Floors:
    """The floors of a run for which the user set none.

    A metric of the user alone counts. Accuracy on labels takes the place of agreement. On seeded
    inputs the answers of a classifier prove little, since they are often all the same: its scores
    are held to dB, like other values.
    """
    if by.metric:
        return Floors(max_drop=DEFAULT_DROP, is_default=True)
    floors = DEFAULT
    if by.labels:
        floors = replace(floors, max_drop=DEFAULT_DROP, min_agreement=None)
    elif not by.samples:
        floors = replace(
            floors,
            min_agreement=SEEDED_AGREEMENT,
            min_sqnr_db=SEEDED_SQNR_DB,
            sqnr_kinds=floors.sqnr_kinds | {OutputKind.CLASSES},
        )
    return floors


def check_measured(floors: Floors, *, has_evaluation: bool, verify: bool) -> None:
    """Refuse floors of the user that a run would not measure.

    Raises:
        UsageError: naming the floor, and what to give.
    """
    if floors.is_default:
        return
    if floors.max_drop is not None and not has_evaluation:
        raise UsageError(
            "A floor on accuracy (--max-drop) needs labelled samples or a metric: give --eval."
        )
    if floors.limits_outputs and not verify:
        raise UsageError(
            "A floor on outputs (--min-agreement, --min-sqnr, --min-cosine, --min-row-cosine, "
            "--max-kl, --max-row-kl) needs compared outputs, and --no-verify turns comparing off; "
            "leave one of them out."
        )


def held_by_nothing(floors: Floors, kinds: Mapping[str, OutputKind]) -> str | None:
    """Why a floor of the user says nothing of the outputs, as a sentence; None: all say something.

    Args:
        floors: of the user.
        kinds: what each output is.
    """
    found = set(kinds.values())
    directions = {kind for kind in OutputKind if kind.is_directions}
    for limit, option, needed in (
        (floors.min_agreement, "--min-agreement", floors.answer_kinds),
        (floors.min_cosine, "--min-cosine", directions),
        (floors.min_row_cosine, "--min-row-cosine", directions),
        (floors.max_kl, "--max-kl", {OutputKind.TOKEN_LOGITS}),
        (floors.max_row_kl, "--max-row-kl", {OutputKind.TOKEN_LOGITS}),
        (floors.min_sqnr_db, "--min-sqnr", floors.sqnr_kinds),
    ):
        if limit is None or found & needed or not found:
            continue
        listed = ", ".join(f"`{name}` ({kind})" for name, kind in kinds.items())
        wanted = " or ".join(sorted(needed))
        return (
            f"{option} is a floor for outputs that hold {wanted}, and the outputs are {listed}. "
            f"If the graph was read wrong, say so: --output-kind NAME={min(needed)}."
        )
    return None


def missed_drop(floors: Floors, drop: float | None) -> str | None:
    """Whether a candidate loses too many points of accuracy, as a clause; None: it does not."""
    if floors.max_drop is None or drop is None or drop <= floors.max_drop:
        return None
    return (
        f"accuracy would drop by {drop:.2f} points; {floors.source('--max-drop')} is "
        f"{floors.max_drop:g}"
    )


def missed(floors: Floors, outputs: Mapping[str, Figures]) -> str | None:
    """Which floor the outputs of a candidate miss, as a clause with the numbers; None: they do not.

    A figure that was not measured is None, and misses no floor.

    Args:
        floors: what must hold.
        outputs: figures by name of the output.
    """
    clauses = (_missed(floors, f"`{name}`", figures) for name, figures in outputs.items())
    return next((clause for clause in clauses if clause is not None), None)


def _missed(floors: Floors, name: str, found: Figures) -> str | None:
    least, share = _least_agreement(floors, found.kind), found.agreement
    if least is not None and share is not None and share < least:
        what, whole = {
            OutputKind.DISCRETE: ("values", "samples"),
            OutputKind.TOKEN_LOGITS: ("top-1 tokens", "positions"),
        }.get(found.kind, ("top-1 answers", "samples"))
        return (
            f"{what} of output {name} would agree for {share:.4f} of the {whole}; "
            f"{floors.source('--min-agreement')} is {least:g}"
        )
    for least, cosine, what, option in (
        (floors.min_cosine, found.mean_cosine, "a mean cosine", "--min-cosine"),
        (floors.min_row_cosine, found.least_cosine, "a row with a cosine", "--min-row-cosine"),
    ):
        if least is not None and cosine is not None and cosine < least:
            return (
                f"output {name} would have {what} of {cosine:.4f}; {floors.source(option)} is "
                f"{least:g}"
            )
    for most, nats, what, option in (
        (floors.max_kl, found.mean_kl, "a mean divergence", "--max-kl"),
        (floors.max_row_kl, found.largest_kl, "a position with a divergence", "--max-row-kl"),
    ):
        if most is not None and nats is not None and nats > most:
            return (
                f"output {name} would have {what} of {nats:.4f} nats (Kullback-Leibler); "
                f"{floors.source(option)} is {most:g}"
            )
    least, sqnr = _least_db(floors, found.kind), found.sqnr_db
    if least is not None and sqnr < least:
        return (
            f"output {name} would have an SQNR of {sqnr:.1f} dB; {floors.source('--min-sqnr')} is "
            f"{least:g}"
        )
    return None


def _least_agreement(floors: Floors, kind: OutputKind) -> float | None:
    return floors.min_agreement if kind in floors.answer_kinds else None


def _least_db(floors: Floors, kind: OutputKind) -> float | None:
    return floors.min_sqnr_db if kind in floors.sqnr_kinds else None


def share_used(
    floors: Floors, outputs: Iterable[EstimatedFigures], *, drop: float | None = None
) -> float | None:
    """The largest share of what a floor allows that a candidate uses up; above 1, it is missed.

    Args:
        floors: what must hold.
        outputs: figures of each output. Of noise, power is what the share is of; of cosines, the
            distance from 1; divergences as they are.
        drop: points of accuracy that the candidate loses.

    Returns:
        The share, at least 0; None when no floor is set on a figure that was measured.
    """
    shares = []
    for found in outputs:
        for least, value in (
            (_least_agreement(floors, found.kind), found.agreement),
            (_least_agreement(floors, found.kind), found.expected_agreement),
            (floors.min_cosine, found.mean_cosine),
            (floors.min_row_cosine, found.least_cosine),
        ):
            if least is not None and value is not None:
                shares.append(_share(1 - value, 1 - least))
        for most, nats in ((floors.max_kl, found.mean_kl), (floors.max_row_kl, found.largest_kl)):
            if most is not None and nats is not None:
                shares.append(_share(nats, most))
        least = _least_db(floors, found.kind)
        if least is not None:
            shares.append(float(10 ** ((least - found.sqnr_db) / 10)))
    if floors.max_drop is not None and drop is not None:
        shares.append(_share(drop, floors.max_drop))
    return max(shares, default=None)


def _share(used: float, allowed: float) -> float:
    if used <= 0:
        return 0.0
    return used / allowed if allowed > 0 else float("inf")
