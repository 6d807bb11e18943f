"""Which runs changed: all of them at a whole look, those that changed last at any."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from excise.server.dashboard import stirred as module
from excise.server.dashboard.stirred import Stirred
from excise.server.events import EVENTS, add


def test_a_folder_that_is_not_there_has_no_runs_until_it_is(tmp_path: Path) -> None:
    stirred = Stirred(tmp_path / "runs")
    assert stirred.look() == []
    add(tmp_path / "runs" / "mr7", "started")
    assert stirred.look() == ["mr7"]


def test_runs_that_come_change_and_go(tmp_path: Path) -> None:
    add(tmp_path / "mr7", "started")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a file").touch()
    stirred = Stirred(tmp_path)
    assert stirred.look() == []
    add(tmp_path / "mr8", "started")
    add(tmp_path / "mr7", "failed")
    assert stirred.look() == ["mr7", "mr8"]
    (tmp_path / "mr8" / "config.toml").write_text("seed = 1")
    assert stirred.look() == ["mr8"]
    shutil.rmtree(tmp_path / "mr7")
    assert stirred.look() == ["mr7"]
    assert stirred.look() == []


def test_between_whole_looks_only_the_runs_that_changed_last_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE", 2)
    for number in range(4):
        add(tmp_path / f"mr{number}", "started")
        for path in (tmp_path / f"mr{number}" / EVENTS, tmp_path / f"mr{number}"):
            os.utime(path, ns=(0, 10**18 - number))  # mr0 changed last
    stirred = Stirred(tmp_path)
    for number in range(4):
        add(tmp_path / f"mr{number}", "failed")
    assert stirred.look(whole=False) == ["mr0", "mr1"]
    assert stirred.look() == ["mr2", "mr3"]
    add(tmp_path / "mr0", "resumed")
    assert stirred.look(whole=False) == []
    assert stirred.look() == ["mr0"]
    add(tmp_path / "mr0", "failed")
    assert stirred.look(whole=False) == ["mr0"]


def test_a_late_run_that_is_gone_is_told_at_once_and_once(tmp_path: Path) -> None:
    add(tmp_path / "mr7", "started")
    stirred = Stirred(tmp_path)
    shutil.rmtree(tmp_path / "mr7")
    assert [stirred.look(whole=False), stirred.look(whole=False), stirred.look()] == [["mr7"], [], []]


def test_a_new_run_is_told_at_once(tmp_path: Path) -> None:
    add(tmp_path / "mr7", "started")
    stirred = Stirred(tmp_path)
    os.utime(tmp_path, ns=(0, 10**18))  # else both could be made at one tick of the file system's clock
    assert stirred.look(whole=False) == []
    add(tmp_path / "mr8", "started")
    assert stirred.look(whole=False) == ["mr8"]
