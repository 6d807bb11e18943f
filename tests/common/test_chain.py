"""The chained log: written whole, by several at once, and no line can be changed unseen."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from excise.common.chain import Fault, append, faults
from excise.common.errors import StorageError


def log(folder: Path, lines: int = 4) -> Path:
    path = folder / "audit.jsonl"
    path.unlink(missing_ok=True)
    for number in range(lines):
        append(path, "asked", number=number, name="Zoë")
    return path


def test_what_was_written_has_no_fault(tmp_path: Path) -> None:
    path = log(tmp_path)
    assert faults(path) == []
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["number"] for entry in entries] == [0, 1, 2, 3]
    assert entries[0]["before"] == "0" * 64
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", range(4))
def test_an_altered_line_is_found(tmp_path: Path, line: int) -> None:
    path = log(tmp_path)
    lines = path.read_text().splitlines()
    lines[line] = lines[line].replace('"asked"', '"denied"')
    path.write_text("\n".join(lines) + "\n")
    assert Fault(line + 1, "the line was altered") in faults(path)


@pytest.mark.parametrize("line", range(3))  # the loss of the last line cannot be seen; the module says so
def test_a_removed_line_is_found(tmp_path: Path, line: int) -> None:
    path = log(tmp_path)
    lines = path.read_text().splitlines()
    del lines[line]
    path.write_text("\n".join(lines) + "\n")
    assert faults(path) == [Fault(line + 1, "the line before it was altered, removed or moved")]


def test_moved_and_foreign_lines_are_found(tmp_path: Path) -> None:
    path = log(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2], lines[1], lines[3]]) + "\n")
    assert [fault.line for fault in faults(path)] == [2, 3, 4]
    path.write_text("\n".join([lines[0], "no JSON", "[1]", *lines[1:]]) + "\n")
    assert faults(path) == [Fault(2, "no entry of this log"), Fault(3, "no entry of this log")]


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_no_byte_can_be_changed_unseen(tmp_path: Path, data: st.DataObject) -> None:
    path = log(tmp_path, 3)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.sampled_from([1, 2, 32]))
    path.write_bytes(bytes(content))
    assert faults(path)


def test_a_line_that_was_cut_by_a_crash_gives_way_to_the_next(tmp_path: Path) -> None:
    path = log(tmp_path, 2)
    path.write_bytes(path.read_bytes() + b'{"at": "2026')
    assert faults(path) == [Fault(3, "the line is not whole")]
    append(path, "asked again")
    assert faults(path) == []
    assert len(path.read_text().splitlines()) == 3


def test_several_may_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append(path, "asked", number=number), range(40)))
    assert faults(path) == []
    assert len(path.read_text().splitlines()) == 40


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        append(tmp_path, "asked")
