"""Temporary folders beside a target: gone afterwards, and those of killed processes, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxslim.io import files


@pytest.mark.skipif(files.fcntl is None, reason="no locks on this system")
def test_folders_of_killed_processes_are_removed_and_living_ones_are_kept(tmp_path: Path) -> None:
    orphan, young, other = (tmp_path / name for name in (".onnxslim-1", ".onnxslim-2", "mine"))
    for folder in (orphan, young, other):
        folder.mkdir()
        (folder / "part").write_bytes(b"x")
    target = tmp_path / "m.onnx"
    with files.temporary_folder(beside=target) as living:
        (living / "part").write_bytes(b"x")
        for folder in (orphan, other, living):
            os.utime(folder, (0, 0))
        with files.temporary_folder(beside=target):
            assert not orphan.exists()
            assert all((folder / "part").exists() for folder in (young, other, living))
    assert sorted(item.name for item in tmp_path.iterdir()) == [".onnxslim-2", "mine"]


def test_a_link_with_such_a_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / ".onnxslim-1").symlink_to(tmp_path / "mine")
    os.utime(tmp_path / "mine", (0, 0))
    with files.temporary_folder(beside=tmp_path / "m.onnx"):
        assert (tmp_path / "mine").exists()
