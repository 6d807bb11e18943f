"""The watch: what changed is told by topic, also when only time passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from excise.server.dashboard import watch as module
from excise.server.dashboard.hub import Hub
from excise.server.dashboard.source import runs_in
from excise.server.dashboard.watch import REQUESTS, RUNS, Watch
from excise.server.events import add


def test_a_run_that_tells_something_is_a_change_and_nothing_is_none(tmp_path: Path) -> None:
    watch = Watch(runs_in(tmp_path), Hub())
    assert watch.look() == []
    add(tmp_path / "mr7", "started")
    assert watch.look() == [RUNS, "run:mr7"]
    topics = [RUNS, "run:mr7", "run:mr8"]
    before = watch.at(topics)
    assert (watch.look(), watch.at(topics)) == ([], before)
    add(tmp_path / "mr7", "failed")
    assert watch.look() == [RUNS, "run:mr7"]
    assert watch.at(topics) == (before[0] + 1, before[1] + 1, before[2])


def test_what_only_time_tells_is_shown_anew_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(runs_in(tmp_path), Hub())
    (before,) = watch.at([REQUESTS])
    assert (watch.look_beside(), watch.at([REQUESTS])) == ([], (before,))
    monkeypatch.setattr(module, "AGES", -1.0)
    assert (watch.look_beside(), watch.at([REQUESTS])) == ([REQUESTS], (before + 1,))
