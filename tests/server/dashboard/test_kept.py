"""What is kept for all viewers: made once, made anew when what it shows changed, and made by one thread at a time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from excise.server.dashboard import kept as module
from excise.server.dashboard.hub import Hub
from excise.server.dashboard.kept import Kept
from excise.server.dashboard.source import runs_in
from excise.server.dashboard.watch import Watch, topic_of
from excise.server.events import add


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(runs_in(tmp_path), Hub())


def test_it_is_made_anew_when_one_of_its_topics_changed(tmp_path: Path, watch: Watch) -> None:
    kept, made = Kept(watch), list[int]()

    def get() -> int:
        def make() -> int:
            made.append(0)
            return len(made)

        return int(kept.get("a", make, topic_of("mr7"), topic_of("mr8")))

    assert kept.fresh("a", topic_of("mr7"), topic_of("mr8")) is None
    assert (get(), get()) == (1, 1)
    add(tmp_path / "mr9", "started")
    watch.look()
    assert get() == 1
    add(tmp_path / "mr8", "started")
    watch.look()
    assert kept.fresh("a", topic_of("mr7"), topic_of("mr8")) is None
    assert get() == 2
    assert kept.fresh("a", topic_of("mr7"), topic_of("mr8")) == 2


def test_what_changes_while_it_is_made_is_seen_the_next_time(tmp_path: Path, watch: Watch) -> None:
    kept = Kept(watch)

    def make() -> str:
        add(tmp_path / "mr7", "started")
        watch.look()
        return "of before, or of after: nobody knows"

    kept.get("a", make, topic_of("mr7"))
    assert kept.get("a", lambda: "anew", topic_of("mr7")) == "anew"


def test_while_one_makes_it_the_others_wait(watch: Watch) -> None:
    kept, made, begun, go = Kept(watch), list[int](), threading.Event(), threading.Event()

    def make() -> int:
        made.append(0)
        begun.set()
        assert go.wait(30)
        return len(made)

    got = list[int]()
    threads = [threading.Thread(target=lambda: got.append(kept.get("a", make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert (got, len(made)) == ([1] * 8, 1)


def test_in_an_event_loop_one_thread_makes_it_for_all(watch: Watch) -> None:
    kept, made = Kept(watch), list[int]()

    def make() -> int:
        made.append(0)
        return len(made)

    async def ask() -> list[int]:
        return [*await asyncio.gather(*(kept.soon("a", make) for _ in range(8))), await kept.soon("a", make)]

    assert asyncio.run(ask()) == [1] * 9


def test_who_comes_after_a_change_gets_nothing_that_was_begun_before(tmp_path: Path, watch: Watch) -> None:
    kept, begun, go = Kept(watch), threading.Event(), threading.Event()

    def old() -> str:
        begun.set()
        assert go.wait(30)
        return "old"

    async def ask() -> list[str]:
        first = asyncio.create_task(kept.soon("a", old, topic_of("mr7")))
        assert await asyncio.to_thread(begun.wait, 30)
        add(tmp_path / "mr7", "started")
        watch.look()
        later = [asyncio.create_task(kept.soon("a", lambda: "new", topic_of("mr7"))) for _ in range(3)]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(first, *later)

    assert asyncio.run(ask()) == ["old", "new", "new", "new"]


def test_what_fails_is_tried_again(watch: Watch) -> None:
    kept = Kept(watch)

    def fail() -> str:
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        kept.get("a", fail)
    assert kept.get("a", lambda: "b") == "b"


def test_it_is_bounded(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    kept = Kept(watch)
    for number in range(10):
        kept.get(number, lambda: "x")
    assert len(kept._made) <= 3
