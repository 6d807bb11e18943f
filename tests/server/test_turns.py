"""Who takes part in a round."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.common.settings import PRESETS, LocalSettings
from excise.server.turns import FEWEST_TURNS, taking_part
from excise.server.weighting import objective_weights

Images = tuple[dict[str, int], dict[str, int]]

settings = st.builds(
    LocalSettings, rounds=st.integers(1, 12), retain_batch=st.integers(0, 200), retain_batch_at_site=st.integers(1, 16)
)
seeds = st.integers(0, 5)


def split(sizes: list[tuple[int, int]]) -> Images:
    return {f"s{i}": f for i, (f, _) in enumerate(sizes)}, {f"s{i}": r for i, (_, r) in enumerate(sizes)}


images = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60).map(split)
FIFTY = split([(5, 100)] + [(0, 100)] * 49)


@given(images, settings, seeds)
def test_sites_that_forget_are_always_there_and_all_others_equally_often(
    held: Images, local: LocalSettings, seed: int
) -> None:
    forget, retain = held
    turns = Counter[str]()
    for _ in range(local.rounds):
        of_forget, of_retain = taking_part(forget, retain, local, turns, seed)
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


@given(images, settings, seeds)
def test_sites_whose_turn_it_is_weigh_as_much_as_all_others(held: Images, local: LocalSettings, seed: int) -> None:
    forget, retain = held
    of_retain = taking_part(forget, retain, local, {}, seed)[1]
    assert all(of_retain[site] == retain[site] for site in forget if forget[site])
    assert sum(of_retain.values()) == pytest.approx(sum(retain.values()))


@given(images, settings, seeds)
def test_no_more_take_part_than_can_have_enough_retain_images_if_all_can_have_a_turn(
    held: Images, local: LocalSettings, seed: int
) -> None:
    forget, retain = held
    others = sum(retain[site] > 0 and not forget[site] for site in forget)
    of_forget, of_retain = taking_part(forget, retain, local, {}, seed)
    turns = sum(of_retain[site] > 0 and not of_forget[site] for site in of_forget)
    fit = sum(n > 0 for n in of_retain.values()) * local.retain_batch_at_site <= local.retain_batch
    assert fit or turns == min(others, max(FEWEST_TURNS, -(-others // local.rounds)))


def test_over_the_rounds_equal_sites_weigh_as_in_the_objective() -> None:
    forget, retain = FIFTY
    local, turns, weight = PRESETS["samples"].local.model_copy(update={"rounds": 49}), Counter[str](), Counter[str]()
    for _ in range(49):  # eleven of forty-nine have a turn, so each has eleven
        of_forget, of_retain = taking_part(forget, retain, local, turns, 0)
        turns.update(of_forget.keys())
        weight.update({site: w.p * (1 - w.a) / 49 for site, w in objective_weights(of_forget, of_retain, 0.4).items()})
    expected = objective_weights(forget, retain, 0.4)
    assert weight == pytest.approx({site: w.p * (1 - w.a) for site, w in expected.items()})


@pytest.mark.parametrize("preset", ["samples", "classes", "labels"])
def test_up_to_a_dozen_sites_take_part_in_every_round_of_a_preset(preset: str) -> None:
    forget, retain = split([(5, 100)] + [(0, 100)] * 11)
    assert taking_part(forget, retain, PRESETS[preset].local, {}, 0) == (forget, retain)


def test_of_fifty_sites_twelve_take_part() -> None:
    assert len(taking_part(*FIFTY, PRESETS["samples"].local, {}, 0)[0]) == 12


def test_who_comes_late_has_a_turn_next_and_nobody_loses_one() -> None:
    forget, retain = FIFTY
    local, turns = PRESETS["samples"].local, Counter[str]()
    for r in range(local.rounds):
        if r == 3:
            forget, retain = forget | {"late": 0}, retain | {"late": 100}
        there = taking_part(forget, retain, local, turns, 0)[0]
        assert r != 3 or "late" in there
        turns.update(there.keys())
    assert min(turns[site] for site in forget) >= 1


def test_who_is_away_has_its_turn_later() -> None:
    forget, retain = FIFTY
    local = PRESETS["samples"].local
    first = taking_part(forget, retain, local, {}, 0)[0]
    away = [site for site in first if not forget[site]][:3]
    instead = taking_part(forget, retain, local, {}, 0, away)[0]
    assert len(instead) == len(first)
    assert not set(away) & instead.keys()
    back = taking_part(forget, retain, local, Counter(instead.keys()), 0)[0]
    assert set(away) <= back.keys()


def test_who_begins_is_drawn() -> None:
    groups = {frozenset(taking_part(*FIFTY, PRESETS["samples"].local, {}, seed)[0]) for seed in range(5)}
    assert len(groups) == 5
