"""The limits that a user sets on what lossy passes may cost, and which of them a candidate misses.

Owns: the question "does this candidate hold the floors?" and the sentence that answers it. Not
here: when a step is kept (see `policy`); measuring (see `report.Drift` and
`services.calibration.Distance`, whose figures these functions take).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Floors:
    """Limits on what lossy passes may cost; None: no such floor.

    Attributes:
        max_drop: points of accuracy (0.5 is half a percentage point) that may be lost.
        min_agreement: share in [0, 1] of top-1 answers that must stay those of the input model.
        min_sqnr_db: signal to quantization noise ratio in dB of every output.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_sqnr_db: float | None = None


def missed(
    floors: Floors,
    *,
    sqnr_db: float | None = None,
    agreement: float | None = None,
    drop: float | None = None,
    output: str | None = None,
) -> str | None:
    """Which floor a candidate misses, as a clause with the numbers; None when it holds them all.

    A figure that was not measured is None, and misses no floor. Figures of several outputs are
    judged by one call each.

    Args:
        floors: what must hold.
        sqnr_db: SQNR of the output, or of the worst output, in dB.
        agreement: share in [0, 1] of equal top-1 answers.
        drop: points of accuracy that the candidate loses; negative when it gains.
        output: name of the output that `sqnr_db` and `agreement` are of; None: the worst one.
    """
    if floors.max_drop is not None and drop is not None and drop > floors.max_drop:
        return f"accuracy would drop by {drop:.2f} points; --max-drop is {floors.max_drop:g}"
    least_db, least = floors.min_sqnr_db, floors.min_agreement
    name = "an output" if output is None else f"output `{output}`"
    if least_db is not None and sqnr_db is not None and sqnr_db < least_db:
        return f"{name} would have an SQNR of {sqnr_db:.1f} dB; --min-sqnr is {least_db:g}"
    if least is not None and agreement is not None and agreement < least:
        return (
            f"top-1 answers of {name} would agree for {agreement:.4f} of the samples; "
            f"--min-agreement is {least:g}"
        )
    return None


def share_used(
    floors: Floors,
    *,
    sqnr_db: float,
    agreements: Iterable[float | None] = (),
    drop: float | None = None,
) -> float | None:
    """The largest share of what a floor allows that a candidate uses up; above 1, it is missed.

    Args:
        floors: what must hold.
        sqnr_db: SQNR of the worst output in dB; noise power is what the share is of.
        agreements: estimates of the share of equal top-1 answers, each in [0, 1]; the worst counts.
        drop: points of accuracy that the candidate loses.

    Returns:
        The share, at least 0; None when no floor is set on a figure that was measured.
    """
    shares = []
    if floors.min_agreement is not None:
        allowed = 1 - floors.min_agreement
        shares += [_share(1 - found, allowed) for found in agreements if found is not None]
    if floors.min_sqnr_db is not None:
        shares.append(10 ** ((floors.min_sqnr_db - sqnr_db) / 10))
    if floors.max_drop is not None and drop is not None:
        shares.append(_share(drop, floors.max_drop))
    return max(shares, default=None)


def _share(used: float, allowed: float) -> float:
    if used <= 0:
        return 0.0
    return used / allowed if allowed > 0 else float("inf")
