"""The watch: what changed is told by topic, also when only time passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from excise.server.dashboard import watch as module
from excise.server.dashboard.hub import Hub
from excise.server.dashboard.source import Source, runs_in
from excise.server.dashboard.watch import AUDIT, REQUESTS, RUNS, SITES, Watch, topic_of
from excise.server.events import add
from tests.coordinators import network


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


def test_a_change_of_the_store_is_told_again_once_it_was_surely_made(tmp_path: Path) -> None:
    """Its line in the log is written a moment before: who asked in between was told what was."""
    with network(tmp_path) as made:
        watch = Watch(Source(made.config.runs, made.toml, made.config, made.store), Hub())
        watch.look()
        assert watch.look() == []
        made.let_in("a")
        assert watch.look() == watch.look() == [SITES, REQUESTS, AUDIT]
        assert watch.look() == []


def test_a_topic_is_one_word_and_one_run() -> None:
    names = ["a run", "a%20run", "a-run", "run:a", "Münster", "a"]
    assert len({topic_of(name) for name in names}) == len(names)
    assert not any(" " in topic_of(name) for name in names)
