"""The page of one run of a pipeline, from the JSON of its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePath
from typing import Final

from onnxslim.pages.blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Column,
    Facts,
    FigureGrid,
    Fold,
    Line,
    Page,
    Prose,
    Section,
    Tile,
    Tiles,
    Tone,
)
from onnxslim.pages.charts import Times, change_bar, latency_chart
from onnxslim.pages.cursor import At
from onnxslim.pages.detail_parts import (
    drift_section,
    energy_section,
    graph_section,
    layers_section,
)
from onnxslim.pages.tuning_parts import sensitivity_section, tuning_section
from onnxslim.pages.words import (
    cosine,
    decibel,
    interval,
    latency_ms,
    percent,
    plain,
    significant,
    speed_words,
    times,
    whole,
)
from onnxslim.render.units import bytes_text, change_text, count_text, ms_text, seconds_text

_REASONS: Final = 8  # of a step, that the page tells; the JSON has all
_NAMES: Final = 4


def run_page(at: At) -> Page:
    """The page of a run."""
    source, target = (_name(at[key]) for key in ("input", "output"))
    heading = f"{source} → {target}" if target else source or "a model in memory"
    sections = [
        _steps_section(at),
        tuning_section(at["tuning"]),
        layers_section(at["details"]),
        sensitivity_section(at["tuning"]),
        drift_section(at),
        _latency_section(at),
        energy_section(at["details"]),
        graph_section(at["details"]),
        _provenance_section(at),
    ]
    return Page(
        title=f"onnxslim: {heading}",
        heading=heading,
        verdict=verdict_words(at),
        sections=[section for section in sections if section is not None],
        data=at.value,
        lead=[*_callouts(at), Tiles(list(_tiles(at)))],
    )


def last_kept(at: At) -> At:
    """The last step that was kept, changed something and was compared; else nothing."""
    kept = [
        step
        for step in at["passes"]
        if step["committed"].value and step["changes"] and step["drift_original"]
    ]
    return kept[-1] if kept else At(None)


def farthest(drifts: At) -> At:
    """The output with the least SQNR; nothing where nothing was compared."""
    found = [drift for _, drift in drifts.items() if drift["sqnr_db"].number is not None]
    numbers = [drift for drift in found if drift["kind"].value != "discrete"] or found
    return min(numbers, key=lambda drift: drift["sqnr_db"].number or 0.0, default=At(None))


def least_agreement(drifts: At) -> At:
    """The least share of answers that agree; nothing where no output has answers."""
    found = [drift["agreement"] for _, drift in drifts.items()]
    known = [share for share in found if share.number is not None]
    return min(known, key=lambda share: share.number or 0.0, default=At(None))


def verdict_words(at: At) -> str:
    """The result in a sentence."""
    before, after = (at[key]["stats"]["file_bytes"].number for key in ("before", "after"))
    parts = [_size_words(before, after)]
    if at["latency"]:
        parts.append(speed_words(at["latency"]))
    first, last = (at[key]["accuracy"].number for key in ("before", "after"))
    drifts = last_kept(at)["drift_original"]
    agreement = least_agreement(drifts).number
    if first is not None and last is not None:
        parts.append(f"accuracy {percent(first)} before, {percent(last)} after")
    elif agreement is not None:
        parts.append(f"{percent(agreement)} of the answers agree")
    elif farthest(drifts)["mean_cosine"]:
        parts.append(f"cosine of rows {farthest(drifts)['mean_cosine'].number:.4f}")
    elif drifts:
        sqnr = farthest(drifts)["sqnr_db"].number
        if sqnr is not None:
            words = "outputs are equal" if decibel(sqnr) == "equal" else f"SQNR {decibel(sqnr)}"
            parts.append(words)
    text = ", ".join(part for part in parts if part)
    return f"{text[:1].upper()}{text[1:]}."


def _size_words(before: float | None, after: float | None) -> str:
    if not before or not after:
        return ""
    if before >= 1.5 * after:
        return f"{before / after:.1f} times smaller"
    if before == after:
        return "same size"
    return f"{change_text(before, after).lstrip('+-')} {'smaller' if after < before else 'larger'}"


def _name(file: At) -> str:
    path = file["path"].text
    return PurePath(path.replace("\\", "/")).name if path else ""


# --------------------------------------------------------------------------- what leads


def _callouts(at: At) -> Iterator[Block]:
    error = at["error"]
    if error:
        yield Prose(f"Exit code {error['exit_code'].value}: {error['message'].text}", "bad")
    steps = ", ".join(step.text for step in at["not_judged_on_real_data"])
    if steps:
        yield Prose(
            f"Not judged on real data: {steps}. What the model loses in practice is not known.",
            "bad",
        )
    latency = at["latency"]
    if latency and latency["clock"].value == "processor":
        waiting = latency["waiting"].number or 0.0
        yield Prose(
            f"The machine was busy: models waited for {100 * waiting:.0f} % of the time, so "
            "processor time was compared."
        )


def _tiles(at: At) -> Iterator[Tile]:
    before, after = at["before"], at["after"]
    yield _size_tile("File", before["stats"]["file_bytes"], after["stats"]["file_bytes"])
    pair = at["latency"]
    if pair:
        low, high = pair["ratio_low"].number or 1.0, pair["ratio_high"].number or 1.0
        tone: Tone = "good" if low > 1 else "bad" if high < 1 else "plain"
        yield Tile(
            "Latency",
            latency_ms(pair["before_ms"]),
            latency_ms(pair["after_ms"]),
            pair["ratio"].figure(times),
            interval(pair),
            tone,
        )
    first, last = before["accuracy"], after["accuracy"]
    if first.number is not None and last.number is not None:
        points = 100 * (last.number - first.number)
        yield Tile("Accuracy", first.figure(percent), last.figure(percent), f"{points:+.2f} points")
    drifts = last_kept(at)["drift_original"]
    if drifts:
        agreement, worst = least_agreement(drifts), farthest(drifts)
        if agreement:
            note = (worst["sqnr_db"].figure(decibel), " SQNR")
            yield Tile("Answers agree", At(None).fact, agreement.figure(percent), note=note)
        elif worst["mean_cosine"]:
            note = (worst["least_cosine"].figure(cosine), " in the worst row")
            yield Tile("Cosine", At(None).fact, worst["mean_cosine"].figure(cosine), note=note)
        else:
            yield Tile("Outputs", At(None).fact, worst["sqnr_db"].figure(decibel), note="SQNR")
    macs = [at[key]["stats"]["macs"] for key in ("before", "after")]
    if all(count.number for count in macs):
        yield _count_tile("MACs", *macs)
    yield _count_tile("Nodes", before["stats"]["nodes"], after["stats"]["nodes"])


def _size_tile(label: str, before: At, after: At) -> Tile:
    change = change_text(before.number or 0, after.number or 0)
    tone: Tone = "good" if (after.number or 0) < (before.number or 0) else "plain"
    return Tile(label, before.figure(bytes_text), after.figure(bytes_text), change, tone=tone)


def _count_tile(label: str, before: At, after: At) -> Tile:
    change = change_text(before.number or 0, after.number or 0)
    return Tile(label, before.figure(count_text), after.figure(count_text), change)


# --------------------------------------------------------------------------- steps


def _steps_section(at: At) -> Section:
    columns = [
        Column("step", is_figure=False),
        Column("file"),
        Column("latency"),
        Column("outputs"),
        Column("changes"),
        Column("took"),
    ]
    has_accuracy = at["before"]["accuracy"].number is not None
    if has_accuracy:
        columns.insert(4, Column("accuracy"))
    waterfall = _Waterfall(at, has_accuracy)
    rows, dim = waterfall.rows()
    shown = [
        i for i in range(len(columns)) if i == 0 or any(r[i].lines or r[i].drawing for r in rows)
    ]
    grid = FigureGrid([columns[i] for i in shown], [[r[i] for i in shown] for r in rows], dim=dim)
    folds = [_step_fold(step) for step in at["passes"]]
    lead = "Each step, what it did to the model before it, and why it was kept or left out."
    return Section("Steps", [grid, *(fold for fold in folds if fold is not None)], lead)


class _Waterfall:
    """The rows of the steps, each with its bars against the model before it."""

    def __init__(self, at: At, has_accuracy: bool) -> None:
        self._at, self._has_accuracy = at, has_accuracy
        self._bytes = at["before"]["stats"]["file_bytes"].number or 0.0
        sizes = [step["stats"]["file_bytes"].number or 0.0 for step in at["passes"]]
        self._most_bytes = max([self._bytes, *sizes])
        pairs = [step["latency"] for step in at["passes"]] + [at["latency"]]
        self._most_ms = max(
            (latency_ms(pair[key]).value for pair in pairs if pair for key in _SIDES), default=0.0
        )

    def rows(self) -> tuple[list[list[Cell]], frozenset[int]]:
        """All rows, and which of them stand back."""
        found, dim = [self._end("before", "before")], set()
        for step in self._at["passes"]:
            if not step["committed"].value:
                dim.add(len(found))
            found.append(self._step(step))
        found.append(self._end("after", "after"))
        return found, frozenset(dim)

    def _end(self, key: str, title: str) -> list[Cell]:
        file = self._at[key]
        size = file["stats"]["file_bytes"]
        row = [Cell((title,)), self._size(size, size.number or 0.0, kept=True)]
        ms = latency_ms(file["latency_ms"])
        row.append(
            Cell((ms,), change_bar(ms.value, ms.value, self._most_ms)) if ms.text else Cell(())
        )
        row.append(Cell(()))
        row += [plain(file["accuracy"].figure(percent))] if self._has_accuracy else []
        took = self._at["seconds"].figure(seconds_text)
        return [*row, Cell(()), plain(took) if key == "after" else Cell(())]

    def _step(self, step: At) -> list[Cell]:
        kept = bool(step["committed"].value)
        why = step["why_not_committed"] or step["why_partly"]
        lines: list[Line] = [step["spec"].fact]
        if why:
            lines.append(("left out: " if not kept else "partly left out: ", why.fact))
        row = [Cell(lines, is_code=True)]
        size = step["stats"]["file_bytes"]
        row.append(self._size(size, self._bytes, kept=kept) if size else Cell(()))
        row.append(self._latency(step["latency"], kept=kept))
        row.append(_outputs(step))
        if self._has_accuracy:
            row.append(plain(step["accuracy"].figure(percent)))
        changes = step["changes"]
        row.append(plain(whole(len(changes.value or ()))))
        row.append(plain(step["seconds"].figure(seconds_text)))
        if kept and size:
            self._bytes = size.number or self._bytes
        return row

    def _size(self, size: At, before: float, *, kept: bool) -> Cell:
        after = size.number or 0.0
        lines: list[Line] = [size.figure(bytes_text)]
        if before != after:
            lines.append(change_text(before, after))
        return Cell(lines, change_bar(before, after, self._most_bytes, kept=kept))

    def _latency(self, pair: At, *, kept: bool) -> Cell:
        if not pair:
            return Cell(())
        before, after = (latency_ms(pair[key]) for key in _SIDES)
        ratio = pair["ratio"].figure(times)
        lines: list[Line] = [after, (ratio, " (", *interval(pair), ")")]
        return Cell(lines, change_bar(before.value, after.value, self._most_ms, kept=kept))


_SIDES: Final = ("before_ms", "after_ms")


def _outputs(step: At) -> Cell:
    drifts = step["drift_original"]
    if not drifts:
        return Cell(())
    if all(drift["equal_bits"].value for _, drift in drifts.items()):
        return Cell(("equal to the bit",))
    worst, agreement = farthest(drifts), least_agreement(drifts)
    if step["fidelity"].value != "LOSSY":
        return Cell(((worst["max_abs"].figure(significant), " at most"),))
    lines: list[Line] = [worst["sqnr_db"].figure(decibel)]
    if agreement:
        lines.append((agreement.figure(percent), " agree"))
    return Cell(lines)


def _step_fold(step: At) -> Fold | None:
    """What a step did and declined, in words: the most frequent first."""
    blocks: list[Block] = []
    for part in list(step["parts"]) or [step]:
        done = _grouped(part["changes"], "what")
        declined = _grouped(part["skips"], "why")
        rows = [("did", text) for text in done] + [("did not", text) for text in declined]
        if rows:
            if len(list(step["parts"])) > 1:
                blocks.append(Code(part["spec"].text))
            blocks.append(Facts(rows))
    notes = [*step["notes"], *([step["untouched"]] if step["untouched"] else [])]
    blocks += [Prose(note.text, "muted") for note in notes]
    if not blocks:
        return None
    return Fold(f"What {step['spec'].text} did, and did not", blocks)


def _grouped(items: At, key: str) -> list[str]:
    """A line for each text, with the first names that it was said of."""
    names: dict[str, list[str]] = {}
    for item in items:
        names.setdefault(item[key].text, []).append(item["node"].text)
    counts = Counter({text: len(found) for text, found in names.items()})
    lines = []
    for text, count in counts.most_common(_REASONS):
        shown = ", ".join(names[text][:_NAMES])
        more = f" and {count - _NAMES:,} more" if count > _NAMES else ""
        lines.append(f"{text}: {shown}{more}")
    if len(counts) > _REASONS:
        lines.append(f"{len(counts) - _REASONS:,} more reasons are in the JSON")
    return lines


# --------------------------------------------------------------------------- the rest


def _latency_section(at: At) -> Section | None:
    pair = at["latency"]
    if not pair:
        return None
    blocks: list[Block] = []
    strips = [
        Times(title, [q.number or 0.0 for q in pair[key]["quantiles"]], title)
        for title, key in (("before", "before_ms"), ("after", "after_ms"))
    ]
    if all(len(strip.quantiles) == 21 for strip in strips):
        legend = [("before", "before"), ("after", "after")]
        note = "A box holds the middle half of the runs, a dot stands for 5 % of them."
        blocks.append(Chart(latency_chart(strips), legend, note))
    columns = [Column("", is_figure=False), *map(Column, ("median", "p10", "p90", "runs"))]
    rows = [
        [
            Cell((title,)),
            *(plain(pair[key][name].figure(ms_text)) for name in ("median", "p10", "p90")),
            plain(pair[key]["runs"].figure(whole)),
        ]
        for title, key in (("before", "before_ms"), ("after", "after_ms"))
    ]
    blocks.append(FigureGrid(columns, rows))
    text = f"Timed in turn on {at['timed_on'].text or 'one sample'}: {speed_words(pair)}."
    return Section("Latency", blocks, text)


def _provenance_section(at: At) -> Section:
    record = at["record"]
    rows: list[tuple[str, Line]] = [
        ("input", (at["input"]["path"].fact, " ", at["input"]["sha256"].fact)),
        ("output", (at["output"]["path"].fact, " ", at["output"]["sha256"].fact)),
        ("compared on", at["verified_on"].fact),
        ("timed on", at["timed_on"].fact),
        ("processor", record["processor"].fact),
        *((f"{name} sha256", digest.fact) for name, digest in record["data_sha256"].items()),
        *((name, setting.fact) for name, setting in record["settings"].items()),
        *((name, version.fact) for name, version in at["versions"].items()),
        ("pipeline", record["pipeline"].fact),
    ]
    blocks: list[Block] = [Prose(line.text) for line in at["data"]]
    blocks += [Prose(note.text, "muted") for note in at["notes"]]
    blocks.append(Facts([row for row in rows if _is_told(row[1])]))
    blocks += [Prose("The command:"), Code(at["command"].text)]
    if record["resolved"]:
        blocks += [
            Prose("The pipeline with all that timing and search decided; it makes the same bytes:"),
            Code(record["resolved"].text),
        ]
    return Section("Provenance", blocks, "What it takes to make the same file again.")


def _is_told(line: Line) -> bool:
    parts = line if isinstance(line, tuple) else (line,)
    return any((part if isinstance(part, str) else part.text).strip() for part in parts)
