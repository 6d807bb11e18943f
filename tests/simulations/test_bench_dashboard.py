"""The dashboard's benchmark on a small coordinator, and its page: goals that are missed are told as missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from excise.server import users
from excise.server.config import store_of
from excise.server.dashboard.runs import runs_of
from excise.server.life import State
from excise.server.requests import statuses
from excise.simulations.bench import crowd as crowds
from excise.simulations.bench import dashboard as module
from excise.simulations.bench import viewers
from excise.simulations.bench.browser import First
from excise.simulations.bench.crowd import crowd
from excise.simulations.bench.dashboard import Measured, measure
from excise.simulations.bench.dashboard_page import goals, write_dashboard_page
from excise.simulations.bench.viewers import Load

GOOD = Measured(
    sites=64,
    runs=300,
    started=2.0,
    firsts=(First(0.4, 0.8, 400_000),) * 5,
    faults={"light": [], "dark": []},
    load=Load(
        viewers=50,
        seconds=600,
        every=2,
        told=[100.0, 200.0, 300.0],
        shown=[250.0, 350.0],
        share=0.02,
        megabytes=[100 + 0.001 * (-1) ** n for n in range(100)],
        bytes_a_look=2000,
    ),
)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowds, "ROUNDS", 4)


def test_a_crowd_is_a_coordinator_with_runs(tmp_path: Path) -> None:
    made = crowd(tmp_path, sites=3, runs=12, progress=lambda _: None)
    with store_of(made.toml) as store:
        asked = statuses(store)
    states = [one.state for one in asked]
    assert [states.count(state) for state in (State.RUNNING, State.DRAFTED, State.REJECTED)] == [1, 8, 3]
    assert all(len(one.sites) == 3 for one in asked)
    cards = {card.name: card for card in runs_of(made.run.parent)}
    assert len(cards) == 12
    assert [name for name, card in cards.items() if card.state == "running"] == [made.run.name]
    assert cards[made.finished].state == "finished"
    (alone,) = [one for one in asked if one.state is State.RUNNING]
    assert alone.run == made.run.name


def test_a_small_one_is_measured_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 2.0)
    monkeypatch.setattr(module, "LOOKS", 2)
    monkeypatch.setattr(module, "PLACES", module.PLACES[:2])
    monkeypatch.setattr(users, "MEMORY", 1024)  # of passwords' hashes
    monkeypatch.setattr(viewers, "WARM", 2)
    measured = measure(tmp_path, sites=3, runs=4, viewers=3, seconds=4, progress=lambda _: None)
    load = measured.load
    assert (len(load.told), len(load.shown), load.lost) == (6, 6, 0)  # two events, three viewers
    assert all(0 < heard < seen for heard, seen in zip(sorted(load.told), sorted(load.shown), strict=True))
    assert load.share > 0
    assert load.bytes_a_look > 500
    assert min(load.megabytes) > 10
    for first in measured.firsts:
        assert 0 < first.painted <= first.drawn
        assert 100_000 < first.bytes < 2_000_000
    assert measured.faults == {"light": [], "dark": []}
    write_dashboard_page(tmp_path / "dashboard.md", measured)
    assert (tmp_path / "dashboard.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (0, {"load": {"told": [301.0]}}),
        (1, {"load": {"share": 0.031}}),
        (2, {"load": {"megabytes": [100 + n / 10 for n in range(100)]}}),
        (3, {"firsts": (First(0.71, 0.8, 1),) * 5}),
        (4, {"firsts": (First(0.1, 1.1, 1),) * 5}),
        (5, {"firsts": (First(0.1, 0.2, 1), First(0.1, 0.2, 500_001))}),
        (6, {"faults": {"light": [], "dark": ["color-contrast"]}}),
    ],
)
def test_what_is_missed_is_told(tmp_path: Path, number: int, changed: dict[str, object]) -> None:
    assert all(reached for *_, reached in goals(GOOD))
    load = changed.pop("load", {})
    missed = replace(GOOD, load=replace(GOOD.load, **load), **changed)  # type: ignore[arg-type]
    assert [at for at, (*_, reached) in enumerate(goals(missed)) if not reached] == [number]
    write_dashboard_page(tmp_path / "page.md", missed)
    assert (tmp_path / "page.md").read_text().count("**no**") == 1
