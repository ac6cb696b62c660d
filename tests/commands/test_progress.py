"""Progress on a terminal, in a pipe and with --verbose."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import onnx
import pytest
from command import Said
from layer_nets import dense_net
from rich.console import Console
from terminal import HIDE_CURSOR, SHOW_CURSOR, in_terminal

from onnxslim.commands import progress as shown_progress
from onnxslim.commands.progress import line, progress
from onnxslim.services.progress import Progress, Step

QUICK = ("--no-latency", "--no-floor", "--passes", "prune-weights")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(dense_net(8, 60, 4), path)
    return path


# ------------------------------------------------------------------- steps


def test_steps_are_told_in_words_with_counts() -> None:
    told: list[str] = []
    state = Progress(lambda now: told.append(str(now)))
    with state.step("quantize-int8"):
        for _ in state.over("timing", ["a", "b"], "placements"):
            pass
        with state.step("reading") as step:
            step.advance(1200)
    assert told == [
        "quantize-int8",
        "quantize-int8: timing 1 of 2 placements",
        "quantize-int8: timing 2 of 2 placements",
        "quantize-int8: timing 2 of 2 placements",
        "quantize-int8",
        "quantize-int8: reading",
        "quantize-int8: reading, 1,200 done",
        "quantize-int8",
        "",
    ]


def test_a_step_ends_when_its_items_are_left_early() -> None:
    state = Progress()
    items = state.over("rounding", range(3), "layers")
    assert next(items) == 0
    assert [str(step) for step in state.steps] == ["rounding 1 of 3 layers"]
    items.close()  # type: ignore[attr-defined]
    assert state.steps == ()
    with pytest.raises(RuntimeError), state.step("timing"):
        raise RuntimeError
    assert state.steps == ()


def test_the_time_left_follows_from_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    step = Step("timing", 40, "placements", started=now, advanced=now)
    assert step.left_s() is None
    now = 110.0
    step.advance(10)
    now = 112.0  # two seconds of the next one have passed
    assert step.left_s() == pytest.approx(28)
    assert Step("step", 3, is_even=False, done=1).left_s() is None
    state = Progress()
    with state.step("timing", 40, "placements") as own:
        own.started, now = 112.0, 122.0
        own.advance(10)
        assert line(state) == "timing 11 of 40 placements (0:10 so far, about 0:30 left)"
        with state.step("running", 4, "samples") as inner:
            inner.done, inner.advanced = 2, inner.started + 1  # a second is left of it
            assert line(state).endswith("(0:10 so far, about 0:30 left)")


# ------------------------------------------------------------------- without a terminal


def test_without_a_terminal_a_line_comes_while_one_call_runs_long(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(shown_progress, "_LINES_S", 0.01)
    told = ""
    with progress() as state, state.step("timing", 40, "placements"):
        for _ in range(500):
            time.sleep(0.01)
            told += capsys.readouterr().err
            if "\n" in told:
                break
    first = told.split("\n")[0]
    assert re.fullmatch(
        r"onnxslim: \d\d:\d\d:\d\d timing 1 of 40 placements \(0:0\d so far\)", first
    )


def test_quiet_shows_nothing_and_verbose_tells_each_step(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(shown_progress, "_LINES_S", 0.001)
    with progress(quiet=True) as state, state.step("timing"):
        time.sleep(0.01)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(shown_progress, "_LINES_S", 100.0)
    with progress(verbose=True) as state, state.step("pass\x1b[2J"), state.step("timing"):
        pass
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" pass\\x1b[2J")
    assert second.endswith(" pass\\x1b[2J: timing")


# ------------------------------------------------------------------- on a terminal


def test_bars_are_drawn_on_a_terminal_and_leave_nothing_behind(model: Path) -> None:
    code, text = in_terminal(model, *QUICK, columns=80)
    assert code == 0
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", text)
    lines = said[said.index("step  ") : said.index("wrote")].split("\n")
    assert max(map(len, lines)) <= 80


def test_each_step_has_a_row_with_a_bar_and_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Progress()
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with state.step("quantize-int8"), state.step("timing", 40, "placements") as step:
        step.advance(10)
        step.started -= 100
        console.print(shown_progress._drawn(state, 80))
    first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert re.fullmatch(r"quantize-int8 +0:00 *", first)
    assert re.fullmatch(r"  timing 11 of 40 placements +\S+ +1:40 +5:00 left *", second)
    assert len(second) <= 80


def test_ctrl_c_leaves_the_terminal_as_it_was(model: Path) -> None:
    code, text = in_terminal(model, *QUICK, interrupt_at=HIDE_CURSOR)
    assert code == 130, text
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    assert text.endswith("onnxslim: error: interrupted.\r\n")


@pytest.mark.parametrize("variable", [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_a_plain_terminal_gets_plain_text(model: Path, variable: tuple[str, str]) -> None:
    code, text = in_terminal(model, *QUICK, environment=dict([variable]))
    assert code == 0
    assert "\x1b" not in text
