"""Who takes part in a round."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.common.settings import PRESETS, LocalSettings
from excise.server.turns import taking_part

images = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)
settings = st.builds(
    LocalSettings, rounds=st.integers(1, 12), retain_batch=st.integers(0, 200), retain_batch_at_site=st.integers(1, 16)
)


def split(sizes: list[tuple[int, int]]) -> tuple[dict[str, int], dict[str, int]]:
    return {f"s{i}": f for i, (f, _) in enumerate(sizes)}, {f"s{i}": r for i, (_, r) in enumerate(sizes)}


@given(images, settings)
def test_sites_that_forget_are_always_there_and_all_others_equally_often(
    sizes: list[tuple[int, int]], local: LocalSettings
) -> None:
    forget, retain = split(sizes)
    turns = Counter[str]()
    for r in range(local.rounds):
        of_forget, of_retain = taking_part(forget, retain, local, r)
        assert of_forget.keys() == of_retain.keys()
        assert all(of_forget[site] == forget[site] for site in of_forget)
        turns.update(of_forget.keys())
    for site in forget:
        if forget[site]:
            assert turns[site] == local.rounds
        elif not retain[site]:
            assert turns[site] == 0
    others = [turns[site] for site in forget if not forget[site] and retain[site]]
    assert not others or (min(others) >= 1 and max(others) - min(others) <= 1)


@given(images, settings)
def test_sites_whose_turn_it_is_weigh_as_much_as_all_others(sizes: list[tuple[int, int]], local: LocalSettings) -> None:
    forget, retain = split(sizes)
    of_retain = taking_part(forget, retain, local, 0)[1]
    assert all(of_retain[site] == retain[site] for site in forget if forget[site])
    assert sum(of_retain.values()) == pytest.approx(sum(retain.values()))


@given(images, settings)
def test_no_more_take_part_than_can_have_enough_retain_images(sizes: list[tuple[int, int]], local: LocalSettings) -> None:
    forget, retain = split(sizes)
    others = sum(retain[site] > 0 and not forget[site] for site in forget)
    of_forget, of_retain = taking_part(forget, retain, local, 0)
    keeping = sum(n > 0 for n in of_retain.values())
    more_than_fit = keeping * local.retain_batch_at_site > local.retain_batch
    least = -(-others // local.rounds)
    assert not more_than_fit or sum(of_retain[site] > 0 and not of_forget[site] for site in of_forget) == least


def test_a_dozen_sites_take_part_in_every_round_of_the_preset_and_of_a_hundred_twelve() -> None:
    local = PRESETS["samples"].local
    forget, retain = split([(5, 100)] + [(0, 100)] * 11)
    assert all(taking_part(forget, retain, local, r) == (forget, retain) for r in range(local.rounds))
    forget, retain = split([(5, 100)] + [(0, 100)] * 99)
    assert [len(taking_part(forget, retain, local, r)[0]) for r in range(local.rounds)] == [12] * local.rounds
