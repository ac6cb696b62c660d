from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

import onnxslim
from onnxslim.records import Change, Fidelity, OutputKind, Skip
from onnxslim.render.json import json_text, report_to_json
from onnxslim.render.printable import printable
from onnxslim.render.tables import FigureTable, Paper, reflowed, wrapped
from onnxslim.render.text import report_to_text, verdict
from onnxslim.render.units import (
    bytes_text,
    change_text,
    count_text,
    ms_text,
    seconds_text,
    small_text,
)
from onnxslim.report import (
    Comparison,
    Drift,
    FileReport,
    Latency,
    LatencyPair,
    PartReport,
    Report,
    Stats,
    StepReport,
)

BEFORE = Stats(14, 431_080, 1_724_320, 1_724_800, 2_293_000)
AFTER = Stats(9, 431_080, 1_700_000, 1_704_123, 2_293_000)
SAME = LatencyPair(Latency(0.21, 0.2, 0.22, 50), Latency(0.2, 0.19, 0.21, 50), 1.04, 0.97, 1.1)
FASTER = LatencyPair(Latency(10.0, 9, 11, 50), Latency(5.0, 4, 6, 50), 2.0, 1.9, 2.1)
SLOWER = LatencyPair(Latency(10.0, 9, 11, 50), Latency(20.0, 19, 21, 50), 0.5, 0.45, 0.55)
EQUAL = Drift(0.0, 0.0, math.inf, 1.0, 1.0, 20.0, True)
CLOSE = Drift(3e-7, 1e-8, 160.0, 1.0, 1.0, 20.0, False)
LOSSY = Drift(0.5, 0.05, 26.0, 0.998, 0.975, 20.0, False, kind=OutputKind.CLASSES)


SHORTER = Drift(0.0, 0.0, math.inf, 1.0, None, 20.0, False, unmatched=32)


def lossless_step() -> StepReport:
    parts = [
        PartReport(
            "fuse-affine",
            Fidelity.CLOSE,
            0.3,
            tuple(Change(f"conv{i}", "merged a BatchNormalization") for i in range(5)),
            (Skip("pool", "is no Conv"),),
        ),
        PartReport("fold-if", Fidelity.EXACT, 0.1, (), ()),
        PartReport("fuse-pad", Fidelity.EXACT, 0.1, (), (Skip("pad\x1b[2J", "reflects"),)),
    ]
    return StepReport(
        "simplify",
        Fidelity.CLOSE,
        True,
        0.5,
        parts,
        stats=AFTER,
        latency=SAME,
        comparison=Comparison({"out": CLOSE}, {"out": CLOSE}),
    )


def left_out_step() -> StepReport:
    part = PartReport("quantize-int8", Fidelity.LOSSY, 2.0, (Change("conv0", "quantized"),), ())
    return StepReport(
        "quantize-int8",
        Fidelity.LOSSY,
        False,
        2.0,
        [part],
        stats=replace(AFTER, file_bytes=500_000),
        latency=SLOWER,
        comparison=Comparison({"out": LOSSY}, {"out": LOSSY}),
        why_not_committed="the model would be slower",
    )


def report(*steps: StepReport) -> Report:
    return Report(
        "onnxslim lenet5.onnx",
        {"onnx": "1.23.2", "onnxruntime": "1.31.1"},
        FileReport("lenet5.onnx", "ab" * 32, BEFORE, SAME.before),
        FileReport("lenet5.slim.onnx", "cd" * 32, AFTER, SAME.after),
        list(steps),
        verified_on="calibration: 500 samples",
        latency=SAME,
        seconds=2.5,
    )


def test_table_has_a_row_for_each_step_and_for_members_that_did_something() -> None:
    text = report_to_text(report(lossless_step()))
    lines = text.split("\n")
    assert lines[0].split() == [
        "step", "changes", "nodes", "params", "file", "MACs", "latency", "faster", "drift", "time",
    ]  # fmt: skip
    assert lines[2].split() == [
        "before",
        "14",
        "431",
        "k",
        "1.72",
        "MB",
        "2.29",
        "M",
        "0.210",
        "ms",
    ]
    assert lines[3].split()[:3] == ["simplify", "5", "9"]
    assert lines[3].endswith("3e-07  0.50 s")
    assert lines[4].startswith("  fuse-affine")
    assert lines[5].split() == ["2", "other", "passes", "0", "0.20", "s"]
    assert lines[6].split()[:2] == ["after", "9"]


def test_verdict_says_it_in_plain_words() -> None:
    assert verdict(report(lossless_step())) == (
        "1.72 MB -> 1.70 MB (-1.2 %), 14 -> 9 nodes, "
        "latency 0.210 -> 0.200 ms, 1.04x (0.97 to 1.10), no difference beyond noise, "
        "outputs equal within 3e-07; compared on calibration: 500 samples"
    )


def test_verdict_counts_values_without_a_counterpart() -> None:
    """Equal values are no equal outputs where an output has become longer or shorter."""
    step = replace(lossless_step(), comparison=Comparison({"out": SHORTER}, {"out": SHORTER}))
    assert (
        "outputs equal within 0 where they have the same size, 32 values have no counterpart"
        in (verdict(report(step)))
    )


def test_verdict_of_bit_equal_outputs() -> None:
    step = replace(lossless_step(), comparison=Comparison({"out": EQUAL}, {"out": EQUAL}))
    assert verdict(report(step)).endswith(
        "outputs equal to the bit; compared on calibration: 500 samples"
    )


def test_verdict_of_a_lossy_run_names_what_moved() -> None:
    step = replace(left_out_step(), committed=True, why_not_committed=None, latency=FASTER)
    whole = replace(report(step), latency=FASTER)
    whole.before.accuracy, whole.after.accuracy = 0.9912, 0.9900
    assert verdict(whole).endswith(
        "latency 10.0 -> 5.00 ms, 2.00x (1.90 to 2.10), accuracy 99.12 -> 99.00 %, outputs moved: "
        "SQNR 26.0 dB, top-1 answers agree for 97.50 %; compared on calibration: 500 samples"
    )


def test_of_several_outputs_the_one_that_moved_most_is_named() -> None:
    parts = {"out": replace(LOSSY, sqnr_db=40.0), "out[:, 4:]": LOSSY}
    step = replace(left_out_step(), committed=True, comparison=Comparison(parts, parts))
    assert "outputs moved: SQNR 26.0 dB of `out[:, 4:]`, top-1" in verdict(report(step))


def test_outputs_that_are_far_from_what_they_were_are_pointed_out() -> None:
    far = {"out": replace(LOSSY, sqnr_db=5.84)}
    step = replace(left_out_step(), committed=True, comparison=Comparison(far, far))
    whole = report(step)
    told = "\nfar from the input model: `out` has an SQNR of 5.8 dB. Judge it on your own data"
    assert told in report_to_text(whole)
    whole.after.accuracy = 0.99
    assert told not in report_to_text(whole)  # they did
    assert told not in report_to_text(report(replace(step, committed=False)))
    assert told not in report_to_text(report(lossless_step()))


def test_verdict_when_nothing_was_kept() -> None:
    assert verdict(report(left_out_step())).endswith("nothing changed")
    assert verdict(report()).endswith("nothing changed")


def test_verdict_when_nothing_was_verified() -> None:
    whole = replace(report(lossless_step()), verified_on="not verified: no inputs were found")
    assert verdict(whole).endswith("outputs not verified: no inputs were found")


def test_what_was_left_out_comes_with_its_numbers() -> None:
    text = report_to_text(report(lossless_step(), left_out_step()))
    assert "quantize-int8 (left out)" in text
    assert (
        "left out: quantize-int8: the model would be slower [measured: 500 kB; latency "
        "10.0 -> 20.0 ms, 0.50x (0.45 to 0.55), slower; SQNR 26.0 dB, top-1 answers agree for "
        "97.50 %]"
    ) in text


def idle_step(*whys: str) -> StepReport:
    skips = tuple(Skip(f"node{number}", why) for number, why in enumerate(whys))
    part = PartReport("quantize-int8", Fidelity.LOSSY, 0.1, (), skips)
    return StepReport("quantize-int8", Fidelity.EXACT, True, 0.1, [part], stats=BEFORE)


def test_a_pass_that_did_nothing_says_why() -> None:
    text = report_to_text(report(idle_step("it needs calibration samples: give --calib")))
    assert "nothing done: quantize-int8: it needs calibration samples: give --calib\n" in text


def test_of_many_reasons_the_one_that_most_places_have_is_told() -> None:
    step = idle_step("it is float16", "no kernel", "no kernel")
    told = "nothing done: quantize-int8: no kernel (2 places); 1 other reason: see --explain\n"
    assert told in report_to_text(report(step))
    assert "nothing done" not in report_to_text(report(step), explain=True)


def test_the_reason_that_decided_is_told_first() -> None:
    step = idle_step("is joined", "is joined")
    part = replace(step.parts[0], skips=(*step.parts[0].skips, Skip("g", "no sizes", decides=True)))
    told = "nothing done: quantize-int8: no sizes; 1 other reason: see --explain\n"
    assert told in report_to_text(report(replace(step, parts=[part])))


def test_members_of_a_preset_that_did_nothing_are_not_told_of() -> None:
    assert "nothing done" not in report_to_text(report(lossless_step()))


def test_notes_are_shown() -> None:
    whole = report(lossless_step())
    whole.notes.append("The opset was raised from 11 to 13.")
    assert "\nnote: The opset was raised from 11 to 13.\n" in report_to_text(whole)


def test_explain_lists_changes_and_skips_by_pass() -> None:
    text = report_to_text(report(lossless_step()), explain=True)
    assert "    changed `conv0`, `conv1`, `conv2` and 2 more: merged a BatchNormalization" in text
    assert "    skipped `pool`: is no Conv" in text
    assert "\nnothing to do for fold-if\n" in text


def test_accuracy_gets_a_column_when_it_was_measured() -> None:
    whole = report(replace(lossless_step(), accuracy=0.99))
    whole.before.accuracy = 0.9912
    text = report_to_text(whole)
    assert text.split("\n")[0].endswith("accuracy")
    assert "99.12 %" in text
    assert "99.00 %" in text


def test_control_characters_of_names_never_reach_the_terminal() -> None:
    text = report_to_text(report(lossless_step()), explain=True)
    assert "\x1b" not in text
    assert "`pad\\x1b[2J`" in text
    assert printable("a\x1b\n名") == "a\\x1b\\n名"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, None])
def test_no_width_loses_a_figure_or_a_name(width: int | None) -> None:
    step = replace(lossless_step(), spec="cluster-weights:exclude=block/conv1.weight:bits=3")
    text = report_to_text(report(step), Paper(width))
    dropped = text.partition("(too narrow for: ")[2].partition(")")[0].split(", ")
    for word in ("before", "1.72 MB", "0.210 ms"):
        assert word in text
    is_known = {"changes", "time"} - set(dropped)  # what there is to say of a member
    assert ("fuse-affine" in text) == bool(is_known)
    for header, word in (("params", "431 k"), ("drift", "3e-07"), ("time", "0.50 s")):
        assert (word in text.split("\n\n")[0]) != (header in dropped)
    header = "changes" if "changes" not in dropped else "   file"
    column = text.index(header) - 1 if header in text else 0
    folded = "".join(line[:column].strip() for line in text.split("\n"))
    assert step.spec in text or step.spec in folded
    if width in (80, 100):
        table = text.split("\n\n")[0].split("\n")
        assert max(map(len, table)) <= width


def test_narrow_paper_lacks_columns_that_may_be_dropped_and_says_which() -> None:
    grid = FigureTable(
        ("name", "first", "second", "latency"),
        droppable=("second", "first"),
        wrapping=frozenset({"latency"}),
    )
    grid.add("a", "1" * 20, "2" * 20, "7.41 -> 4.82 ms, 1.54x (1.50 to 1.58)")
    assert "too narrow" not in grid.render(Paper(100))
    assert "7.41 -> 4.82 ms, 1.54x" in grid.render(Paper(100))
    some, fewer = grid.render(Paper(60)), grid.render(Paper(30))
    assert some.endswith("(too narrow for: second)")
    assert "1" * 20 in some
    assert fewer.endswith("(too narrow for: second, first)")
    for text in (some, fewer):
        lines = text.split("\n")
        assert max(map(len, lines)) <= 60
        assert lines[0].startswith("name")  # still a table
        assert "2222" not in text


def test_long_names_are_broken_behind_their_signs() -> None:
    grid = FigureTable(("step", "time"))
    grid.add("quantize-int8:activations=u8:skip=/block/conv", "1 s")
    grid.add("before", "2 s")
    assert grid.render(Paper(30)).split("\n")[2:] == [
        "quantize-int8:            1 s",
        "  activations=u8:skip=/",
        "  block/conv",
        "before                    2 s",
    ]


def test_names_of_passes_are_broken_between_their_words() -> None:
    """Where a wide column leaves little room; a name without signs is broken all the same."""
    grid = FigureTable(("step", "drift"))
    grid.add("  convert-residual-sums", "0.00000012 of the range")
    grid.add("anameofmorethantwentyletters", "none")
    assert grid.render(Paper(44)).split("\n")[2:] == [
        "  convert-residual-  0.00000012 of the range",
        "    sums",
        "anameofmorethantwen                     none",
        "  tyletters",
    ]


def test_no_line_ends_between_a_number_and_its_unit() -> None:
    assert wrapped("from 98.90 % to 12.5 ms", Paper(10)) == "from\n  98.90 %\n  to\n  12.5 ms"


def test_paragraphs_are_broken_between_words_and_code_is_not() -> None:
    text = """Decline when:
    1. The value is not zero, or for MaxPool not known to be at most every element.

    before (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) { a = Pad (x, p) }"""
    assert reflowed(text, Paper(40)).split("\n") == [
        "Decline when:",
        "    1. The value is not zero, or for",
        "       MaxPool not known to be at most",
        "       every element.",
        "",
        "    before (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) { a = Pad (x, p) }",
    ]
    assert wrapped("  read by     abc def ghi", Paper(20)).split("\n") == [
        "  read by     abc",
        "    def ghi",
    ]


def test_text_for_a_pipe_has_no_colours_and_long_lines_stay_whole() -> None:
    grid = FigureTable(("name", "value"))
    grid.add("n" * 300, "1", style="bold")
    assert "n" * 300 in grid.render(Paper())
    assert "\x1b" not in grid.render(Paper())
    assert "\x1b" in grid.render(Paper(400, color=True))


def test_names_that_look_like_markup_stay_as_they_are() -> None:
    grid = FigureTable(("name",))
    grid.add("[bold]x[/bold] :smile:")
    assert "[bold]x[/bold] :smile:" in grid.render(Paper())


def test_json_has_the_documented_shape() -> None:
    data = json.loads(json_text(report_to_json(report(lossless_step(), left_out_step()))))
    assert data["onnxslim"] == onnxslim.__version__
    assert data["command"] == "onnxslim lenet5.onnx"
    assert data["versions"] == {"onnx": "1.23.2", "onnxruntime": "1.31.1"}
    assert data["input"] == {"path": "lenet5.onnx", "sha256": "ab" * 32}
    assert data["output"] == {"path": "lenet5.slim.onnx", "sha256": "cd" * 32}
    assert data["verified_on"] == "calibration: 500 samples"
    assert data["before"]["stats"] == {
        "nodes": 14, "parameters": 431_080, "initializer_bytes": 1_724_320,
        "file_bytes": 1_724_800, "macs": 2_293_000,
    }  # fmt: skip
    assert data["after"]["latency_ms"] == {
        "median": 0.2, "p10": 0.19, "p90": 0.21, "runs": 50, "pairs_mean": None, "quantiles": [],
    }  # fmt: skip
    assert data["latency"]["clock"] == "wall"
    first, second = data["passes"]
    assert first["spec"] == "simplify"
    assert first["fidelity"] == "CLOSE"
    assert first["committed"] is True
    assert first["changes"][0] == {"node": "conv0", "what": "merged a BatchNormalization"}
    assert first["skips"][0] == {"node": "pool", "why": "is no Conv"}
    assert [part["spec"] for part in first["parts"]] == ["fuse-affine", "fold-if", "fuse-pad"]
    assert first["latency_ms"]["median"] == 0.2
    assert first["why_not_committed"] is None
    assert first["drift_original"]["out"]["max_abs"] == 3e-7
    assert second["why_not_committed"] == "the model would be slower"
    assert second["drift_previous"]["out"]["agreement"] == 0.975
    assert second["accuracy"] is None


def test_json_writes_infinities_and_nan_as_words_that_read_back() -> None:
    text = json_text({"a": math.inf, "b": [-math.inf, math.nan], "c": None, "d": 1.5})
    data = json.loads(text)
    assert data == {"a": "Infinity", "b": ["-Infinity", "NaN"], "c": None, "d": 1.5}
    assert float(data["a"]) == math.inf
    assert math.isnan(float(data["b"][1]))


def test_sizes_and_counts_have_three_digits() -> None:
    sizes = [0, 999, 1000, 1_724_800, 17_248_000, 999_500, 548_000_000, 2_500_000_000]
    assert [bytes_text(size) for size in sizes] == [
        "0 B", "999 B", "1.00 kB", "1.72 MB", "17.2 MB", "1.00 MB", "548 MB", "2.50 GB",
    ]  # fmt: skip
    assert [count_text(count) for count in (0, 9_999, 10_000, 431_080, None)] == [
        "0", "9,999", "10.0 k", "431 k", "?",
    ]  # fmt: skip


def test_times_fit_their_unit() -> None:
    assert [ms_text(ms) for ms in (0, 0.0213, 0.21, 12.34, 999.4, 1200)] == [
        "0 ms", "0.0213 ms", "0.210 ms", "12.3 ms", "999 ms", "1.2 s",
    ]  # fmt: skip
    assert [seconds_text(s) for s in (0.0004, 0.004, 0.12, 1.23, 12.3, 125)] == [
        "0 ms", "4 ms", "0.12 s", "1.2 s", "12 s", "2 min 5 s",
    ]  # fmt: skip


def test_changes_are_relative_and_never_rounded_to_nothing() -> None:
    pairs = [(100, 100), (1_724_800, 1_704_123), (100, 150), (1_000_000, 999_997), (0, 5), (4, 0)]
    assert [change_text(before, after) for before, after in pairs] == [
        "same", "-1.2 %", "+50.0 %", "-0.0003 %", "new", "-100.0 %",
    ]  # fmt: skip
    assert [small_text(value) for value in (0.0, 3.2e-7, math.inf)] == ["0", "3e-07", "inf"]
