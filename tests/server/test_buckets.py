"""Token buckets: against one that keeps every time, and with more keys than are remembered."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.server.buckets import Buckets
from excise.server.dashboard.limits import CHANGES_AT_ONCE, PAGES_AT_ONCE, Limits, TooMany

STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), max_size=120)
"""Who asks, and how many quarters of a second after the one before."""


class Slow:
    """The same, by counting drops: `rate` a second fall into a bucket, exactly, and it overflows at `burst`."""

    def __init__(self, burst: int, rate: int) -> None:
        self.burst, self.rate = burst, rate
        self.left: dict[str, Fraction] = {}

    def pass_quarter(self) -> None:
        for key, left in self.left.items():
            self.left[key] = min(Fraction(self.burst), left + Fraction(self.rate, 4))

    def take(self, key: str) -> bool:
        left = self.left.setdefault(key, Fraction(self.burst))
        if left >= 1:
            self.left[key] = left - 1
        return left >= 1


@given(steps=STEPS, burst=st.integers(1, 6), rate=st.integers(1, 4))
def test_it_lets_pass_what_the_slow_one_does(steps: list[tuple[str, int]], burst: int, rate: int) -> None:
    now, slow = [0.0], Slow(burst, rate)
    fast = Buckets(burst, rate, lambda: now[0])
    for key, quarters in steps:
        now[0] += quarters / 4
        for _ in range(quarters):
            slow.pass_quarter()
        assert fast.take(key) == slow.take(key)


@given(steps=STEPS, burst=st.integers(1, 6), rate=st.integers(1, 4))
def test_waiting_as_long_as_is_told_is_enough_and_less_is_not(steps: list[tuple[str, int]], burst: int, rate: int) -> None:
    now = [0.0]
    made = Buckets(burst, rate, lambda: now[0])
    for key, quarters in steps:
        now[0] += quarters / 4
        if not made.take(key):
            wait = made.wait(key)
            assert wait > 0
            now[0] += wait / 2
            assert not made.take(key)
            now[0] += wait / 2 + 1e-9
            assert made.take(key)
        elif made.wait(key) == 0:
            assert made.take(key)


def test_full_buckets_are_forgotten_without_loss_and_then_the_longest_unused() -> None:
    now = [0.0]
    made = Buckets(2, 1.0, lambda: now[0], most=3)
    for key in "abc":
        made.take(key)
    now[0] = 2.5  # all are full again
    assert made.take("d")
    assert len(made) == 1
    for key in ("d", "e", "e", "f", "d"):  # d was used last
        made.take(key)
    assert made.take("g")  # e is forgotten, though empty
    assert len(made) == 3
    assert not made.take("d")
    assert made.take("e")


def test_what_is_not_full_again_is_forgotten_only_for_want_of_room() -> None:
    now = [0.0]
    made = Buckets(1, 1.0, lambda: now[0], most=3)
    for key in "abcd":
        now[0] += 0.1
        assert made.take(key)
    assert not any(made.take(key) for key in "bcd")
    assert made.take("a")


def test_a_flood_of_keys_takes_bounded_memory() -> None:
    now = [0.0]
    made = Buckets(2, 1.0, lambda: now[0], most=100)
    for i in range(5000):
        now[0] += 0.001
        made.take(str(i))
        assert len(made) <= 100


def test_a_user_has_one_count_for_pages_and_one_for_changes() -> None:
    now = [0.0]
    limits = Limits(lambda: now[0])
    for _ in range(PAGES_AT_ONCE):
        limits.count("ada")
    with pytest.raises(TooMany) as refused:
        limits.count("ada")
    assert refused.value.seconds == 1
    for _ in range(CHANGES_AT_ONCE):
        limits.count("ada", changes=True)
    with pytest.raises(TooMany):
        limits.count("ada", changes=True)
    limits.count("eve")
    now[0] += 1
    limits.count("ada")
    limits.count("ada", changes=True)
