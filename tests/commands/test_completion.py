"""Shell completion, by the protocol between the scripts of the shells and the command."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from command import Said

from onnxslim import cli
from onnxslim.commands.completion import VARIABLE, answer

CASES = (
    ("onnxslim comp", {"compress", "compare", "completion"}),
    ("onnxslim model.onnx --out", {"--output", "--out-dir", "--output-kind"}),
    ("onnxslim model.onnx --passes simplify,prune-ch", {"simplify,prune-channels"}),
    ("onnxslim model.onnx --passes prune-channels:ra", {"prune-channels:ratio="}),
    ("onnxslim model.onnx --passes prune-channels:scope=g", {"prune-channels:scope=global"}),
    (
        "onnxslim m.onnx -p prune-channels:ratio=0.5:reconstruct=t",
        {"prune-channels:ratio=0.5:reconstruct=true"},
    ),
    ("onnxslim passes fuse-cas", {"fuse-casts"}),
    ("onnxslim completion z", {"zsh"}),
)
LINES = pytest.mark.parametrize(("line", "expected"), CASES)


@LINES
def test_bash_gets_what_follows_its_last_word_break(
    line: str, expected: set[str], monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert answer(cli.cli, "bash_complete") == 0
    begun = max(line.rpartition(" ")[2].rfind(sign) for sign in ":=") + 1
    assert set(capsys.readouterr().out.split()) == {f"plain,{value[begun:]}" for value in expected}


@LINES
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_get_whole_words(
    shell: str, line: str, expected: set[str], monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    words = line.split(" ")
    is_zsh = shell == "zsh"
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1) if is_zsh else words[-1])
    assert answer(cli.cli, f"{shell}_complete") == 0
    out = capsys.readouterr().out
    found = out.split("\n")[1::3] if is_zsh else [row.split(",", 1)[1] for row in out.splitlines()]
    assert {value.partition("\t")[0] for value in found} == expected


@pytest.mark.parametrize("line", ["onnxslim inspect mod", "onnxslim mod", "onnxslim pack a.onnx "])
def test_where_nothing_fits_files_do(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert answer(cli.cli, "bash_complete") == 0
    assert capsys.readouterr().out == f"file,{line.rpartition(' ')[2]}\n"


@pytest.mark.parametrize("line", ["onnxslim m.onnx -p nothing:", "onnxslim -p fuse-pad:'x"])
def test_a_broken_line_is_no_error(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert answer(cli.cli, "bash_complete") == 0
    assert "plain," not in capsys.readouterr().out


def test_an_unknown_question_is_refused() -> None:
    assert answer(cli.cli, "csh_complete") == 1
    assert answer(cli.cli, "bash_source") == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_it_can_read(shell: str, capsys: Said) -> None:
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"{VARIABLE}={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_behind_a_comma(capsys: Said) -> None:
    assert cli.run(["completion", "fish"]) == 0
    script = capsys.readouterr().out.replace(" onnxslim)", f" {sys.executable} -m onnxslim)")
    ask = 'complete -C "onnxslim m.onnx --passes simplify,fuse-pa"'
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{script}\n{ask}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\t")[0].strip() == "simplify,fuse-pad"


def test_the_script_of_fish_parts_an_answer_at_its_first_comma(capsys: Said) -> None:
    assert cli.run(["completion", "fish"]) == 0
    assert 'string split --max 1 ","' in capsys.readouterr().out
