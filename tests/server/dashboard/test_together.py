"""What many ask at once: one thread makes it, its failure is told to all, and who goes away does not end it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from excise.server.dashboard.together import Together


def test_one_thread_makes_it_for_all_who_ask_at_once() -> None:
    made = list[str]()

    def make() -> int:
        made.append(threading.current_thread().name)
        return len(made)

    async def ask() -> list[int]:
        together = Together()
        first = await asyncio.gather(*(together.make("a", make) for _ in range(20)))
        return [*first, await together.make("a", make)]

    assert asyncio.run(ask()) == [1] * 20 + [2]
    assert threading.main_thread().name not in made


def test_its_failure_is_told_to_all() -> None:
    def fail() -> None:
        raise OSError("the disk")

    async def ask() -> list[object]:
        together = Together()
        return await asyncio.gather(*(together.make("a", fail) for _ in range(3)), return_exceptions=True)

    assert [str(error) for error in asyncio.run(ask())] == ["the disk"] * 3


def test_who_goes_away_does_not_end_it_for_the_others() -> None:
    go = threading.Event()

    async def ask() -> object:
        together = Together()
        first = asyncio.create_task(together.make("a", lambda: go.wait(30)))
        await asyncio.sleep(0)
        second = asyncio.create_task(together.make("a", lambda: "begun again"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        return await second

    assert asyncio.run(ask()) is True


def test_the_end_of_what_was_begun_is_waited_for_without_its_result() -> None:
    go, ended = threading.Event(), list[str]()

    def fail() -> None:
        go.wait(30)
        ended.append("failed")
        raise OSError("the disk")

    async def ask() -> list[str]:
        together = Together()
        begun = asyncio.create_task(together.make("a", fail))
        await asyncio.sleep(0)
        go.set()
        await together.ended("a")
        await together.ended("nothing of this name")
        with pytest.raises(OSError, match="the disk"):
            await begun
        return ended

    assert asyncio.run(ask()) == ["failed"]
