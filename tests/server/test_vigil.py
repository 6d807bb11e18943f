"""Whom a run waits for is told when it waits, once, and again when they are others."""

from __future__ import annotations

from datetime import datetime

import pytest

from excise.server import vigil as module
from excise.server.vigil import Vigil


class Clock:
    """A clock that stands where it is put."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_nothing_is_told_while_news_come(clock: Clock) -> None:
    told: list[list[str]] = []
    vigil = Vigil[list[str]](lambda sites, _: told.append(sites))
    for _ in range(5):
        clock.now += module.QUIET - 0.1
        vigil.look(["a"])
        vigil.news()
    assert told == []


def test_a_wait_is_told_once_and_again_when_others_are_awaited(clock: Clock) -> None:
    told: list[tuple[list[str], str]] = []
    vigil = Vigil[list[str]](lambda sites, since: told.append((sites, since)))
    clock.now += module.QUIET
    for _ in range(3):
        vigil.look(["a", "b"])
        clock.now += 1
    assert [sites for sites, _ in told] == [["a", "b"]]
    vigil.news()  # a has answered
    vigil.look(["b"])
    assert len(told) == 1
    clock.now += module.QUIET
    vigil.look(["b"])
    assert [sites for sites, _ in told] == [["a", "b"], ["b"]]
    first, second = (datetime.fromisoformat(since) for _, since in told)
    assert first <= second
    assert first.utcoffset() is not None
