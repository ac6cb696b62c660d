"""What of a text may reach a terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.render.json import json_text
from onnxslim.render.printable import printable, printable_json, printable_lines


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_no_control_reaches_json_and_json_says_the_same(text: str) -> None:
    shown = json_text({"name": text})
    assert json.loads(shown) == {"name": text}
    assert not {c for c in shown if unicodedata.category(c)[0] == "C"} - {"\n"}


@pytest.mark.parametrize("sign", ["\x1b", "\x9b", "\u202e", "\u2066", "\u2028", "\x07", "\r"])
def test_what_controls_a_terminal_is_escaped(sign: str) -> None:
    assert printable(f"a{sign}b").isprintable()
    assert printable_lines(f"a\n{sign}").split("\n")[0] == "a"


def test_words_of_all_languages_stay_as_they_are() -> None:
    assert printable("Größe 大きさ") == "Größe 大きさ"
    assert printable_json('{"大": 1}\n') == '{"大": 1}\n'


def test_colours_stay_where_there_are_some_and_nothing_else() -> None:
    text = "\x1b[32mgreen\x1b[0m \x1b[2J"
    assert printable_lines(text, color=True) == "\x1b[32mgreen\x1b[0m \\x1b[2J"
    assert "\x1b" not in printable_lines(text)
