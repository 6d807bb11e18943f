"""A file is either old or new, and a refusal of the operating system says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from excise.common.errors import StorageError
from excise.common.files import storage_errors, write_atomically


@pytest.mark.parametrize(("content", "wanted"), [(b"\0\xff", b"\0\xff"), ("é\n", "é\n".encode()), (b"", b"")])
def test_writes_into_a_new_folder(tmp_path: Path, content: bytes | str, wanted: bytes) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomically(path, content)
    assert path.read_bytes() == wanted
    assert list(path.parent.iterdir()) == [path]


def test_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("a long first version", "new"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "fdopen", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if call == "replace":
            patched.setattr(Path, "replace", full)
        else:
            patched.setattr(os, call, full)
        with pytest.raises(StorageError, match=r"cannot write .*file: No space left on device\. Free space") as caught:
            write_atomically(path, "new")
    assert caught.value.exit_code == 5
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        write_atomically(tmp_path / "folder", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_only_the_systems_refusals_are_turned(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"), storage_errors(tmp_path):
        raise ValueError("ours")
    with pytest.raises(StorageError, match="no number"), storage_errors(tmp_path):
        raise OSError("no number")
