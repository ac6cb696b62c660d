"""The folder of kept results: whole or missing, within its limit, in spite of the machine."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from fault_points import FailingCalls

from onnxslim.graph.wire import Payload
from onnxslim.io import files
from onnxslim.io.content_store import DEFAULT_LIMIT, ContentStore

KEY, OTHER = "1" * 64, "2" * 64


def payload(content: bytes) -> dict[str, Payload]:
    return {hashlib.sha256(content).hexdigest(): Payload(len(content), lambda: content)}


def kept(store: ContentStore, key: str, body: bytes, weights: bytes, used: float) -> None:
    """Write an entry that was used last at `used`."""
    before = {file.path for file in store.kept()}
    store.write(key, body, payload(weights))
    for file in store.kept():
        if file.path not in before:
            os.utime(file.path, (used, used))


@pytest.mark.parametrize("nbytes", [10, 3 << 20])
def test_what_was_written_is_read(tmp_path: Path, nbytes: int) -> None:
    store, content = ContentStore(tmp_path / "new" / "folder"), os.urandom(nbytes)
    assert store.read(KEY) is None
    store.write(KEY, b"body", payload(content))
    assert store.read(KEY) == b"body"
    first, second = (store.weights(*payload(content)) for _ in range(2))
    assert bytes(first) == bytes(second) == content
    assert ContentStore(tmp_path / "new" / "folder").read(KEY) == b"body"


def test_many_reads_of_large_weights_take_one_file_descriptor(tmp_path: Path) -> None:
    store, content = ContentStore(tmp_path), bytes(2 << 20)
    store.write(KEY, b"", payload(content))
    first = store.weights(*payload(content))
    assert all(store.weights(*payload(content)).obj is first.obj for _ in range(3))


def test_weights_of_several_entries_lie_there_once(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    for key in (KEY, OTHER):
        store.write(key, b"body", payload(b"shared" * 100))
    assert sorted(file.is_entry for file in store.kept()) == [False, True, True]


@pytest.mark.parametrize("change", ["cut", "altered", "foreign", "empty"])
def test_an_entry_that_is_not_whole_is_missing(tmp_path: Path, change: str) -> None:
    store = ContentStore(tmp_path)
    store.write(KEY, b"some body", {})
    (path,) = [file.path for file in store.kept()]
    content = path.read_bytes()
    changed = {
        "cut": content[:-1],
        "altered": content[:-1] + bytes([content[-1] ^ 1]),
        "foreign": b"something else",
        "empty": b"",
    }
    path.write_bytes(changed[change])
    assert store.read(KEY) is None


def test_altered_weights_go_with_the_entry(tmp_path: Path) -> None:
    store, good, bad = ContentStore(tmp_path), b"good" * 10, b"fine" * 10
    store.write(KEY, b"body", payload(good) | payload(bad))
    (digest,) = payload(bad)
    (tmp_path / "weights" / digest).write_bytes(b"evil" * 10)
    store.remove(KEY)
    assert store.read(KEY) is None
    assert [file.path.name for file in store.kept()] == list(payload(good))


def test_weights_are_found_by_digest_alone(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"text")
    with pytest.raises(FileNotFoundError):
        ContentStore(tmp_path).weights("../secret")


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    assert store.limit == DEFAULT_LIMIT
    keys = [str(number) * 64 for number in range(4)]
    for number, key in enumerate(keys):
        kept(store, key, bytes(1000), bytes([number]) * 1000, 1000.0 + number)
    assert store.read(keys[0]) is not None  # now it was used
    store.set_limit(6000)
    assert ContentStore(tmp_path).limit == 6000
    assert [store.read(key) is not None for key in keys] == [True, False, True, True]
    assert sum(file.nbytes for file in store.kept()) <= 6000


def test_only_files_of_the_store_are_removed(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    store.write(KEY, b"body", payload(b"weights"))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "steps" / "notes.txt").write_text("mine")
    store.clear()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["notes.txt", "notes.txt", "steps"]


def test_each_request_to_the_system_may_fail(tmp_path: Path) -> None:
    clean = FailingCalls()
    with files.replaced(clean):
        ContentStore(tmp_path / "0").write(KEY, b"body", payload(bytes(2 << 20)))
    for at in range(1, len(clean.requests) + 1):
        folder = tmp_path / str(at)
        try:
            with files.replaced(FailingCalls(at, errno.ENOSPC)):
                ContentStore(folder).write(KEY, b"body", payload(bytes(2 << 20)))
        except OSError:
            assert ContentStore(folder).read(KEY) is None
        store = ContentStore(folder)
        store.write(KEY, b"body", payload(bytes(2 << 20)))
        assert store.read(KEY) == b"body"
        assert store.weights(*payload(bytes(2 << 20))).nbytes == 2 << 20
