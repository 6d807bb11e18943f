"""The search of settings: finds what is best, goes on where it was interrupted, gives up what is bad, survives what fails."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from excise.simulations.baselines.method import Knob, Settings
from excise.simulations.contest.search import BUDGET, SEEDS, Tried, judged_seeds, search

KNOBS = {"rate": Knob(1e-3, 1.0, 0.5, log=True), "rounds": Knob(1, 9, 2, whole=True)}


def hill(settings: Settings, seed: int) -> Tried:
    """Lowest at a rate of 0.03 and 6 rounds, and for nothing."""
    return Tried(abs(math.log10(settings["rate"] / 0.03)) + abs(settings["rounds"] - 6) + 0.001 * seed, 0.0)


def test_it_finds_better_settings_than_the_defaults(tmp_path: Path) -> None:
    found = search("hill", KNOBS, hill, tmp_path, 25)
    assert found.loss < hill({"rate": 0.5, "rounds": 2}, 0).loss / 3
    assert KNOBS["rate"].holds(found.settings["rate"])
    assert KNOBS["rounds"].holds(found.settings["rounds"])
    assert (found.trials, found.failed) == (25, 0)
    assert found.loss == pytest.approx(sum(hill(found.settings, seed).loss for seed in SEEDS) / len(SEEDS))


def test_the_first_trial_is_the_defaults(tmp_path: Path) -> None:
    tried = list[Settings]()

    def loss(settings: Settings, seed: int) -> Tried:
        tried.append(dict(settings))
        return hill(settings, seed)

    search("hill", KNOBS, loss, tmp_path, 1)
    assert tried == [{"rate": 0.5, "rounds": 2}] * len(SEEDS)


def test_a_search_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    calls = list[int]()

    def breaks(settings: Settings, seed: int) -> Tried:
        calls.append(seed)
        if len(calls) == 4 * len(SEEDS) + 1:
            raise KeyboardInterrupt
        return hill(settings, seed)

    with pytest.raises(KeyboardInterrupt):
        search("hill", KNOBS, breaks, tmp_path, 10)
    found = search("hill", KNOBS, breaks, tmp_path, 10)
    assert found.trials == 10
    assert (
        4 * len(SEEDS) + 1 < len(calls) == 10 * len(SEEDS) - found.pruned * (len(SEEDS) - 1) + 1
    )  # that which was interrupted
    before = len(calls)
    assert search("hill", KNOBS, breaks, tmp_path, 10) == found
    assert len(calls) == before


def test_the_same_search_finds_the_same(tmp_path: Path) -> None:
    assert search("hill", KNOBS, hill, tmp_path / "a", 8) == search("hill", KNOBS, hill, tmp_path / "b", 8)


def test_the_defaults_are_tried_though_their_trial_was_interrupted(tmp_path: Path) -> None:
    def interrupted(settings: Settings, seed: int) -> Tried:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search("hill", KNOBS, interrupted, tmp_path, 3)
    tried = list[Settings]()

    def loss(settings: Settings, seed: int) -> Tried:
        tried.append(dict(settings))
        return hill(settings, seed)

    search("hill", KNOBS, loss, tmp_path, 1)
    assert tried[0] == {"rate": 0.5, "rounds": 2}


def test_bad_trials_are_given_up_after_their_first_seed(tmp_path: Path) -> None:
    seeds = list[int]()

    def loss(settings: Settings, seed: int) -> Tried:
        seeds.append(seed)
        return Tried(float(len(seeds)), 0.0)  # each worse than all before

    found = search("worse", KNOBS, loss, tmp_path, 12)
    assert found.pruned > 0
    assert len(seeds) == 12 * len(SEEDS) - found.pruned * (len(SEEDS) - 1)
    assert found.settings == {"rate": 0.5, "rounds": 2}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_settings_that_give_no_model_are_counted_and_never_chosen(tmp_path: Path, value: float) -> None:
    def loss(settings: Settings, seed: int) -> Tried:
        return Tried(value if settings["rounds"] > 2 else settings["rounds"], 0.0)

    found = search("fails", KNOBS, loss, tmp_path, 12)
    assert found.failed > 0
    assert found.settings["rounds"] <= 2
    none = search("all fail", KNOBS, lambda *_: Tried(value, 0.0), tmp_path, 2)
    assert (none.settings, none.loss, none.failed) == ({"rate": 0.5, "rounds": 2}, math.inf, 2)


def test_a_method_without_settings_is_not_tried(tmp_path: Path) -> None:
    def loss(settings: Settings, seed: int) -> Tried:
        raise AssertionError("there is nothing to choose from")

    found = search("plain", {}, loss, tmp_path, 20)
    assert (dict(found.settings), found.loss, found.trials) == ({}, math.inf, 0)


def test_nobody_is_judged_where_settings_are_searched() -> None:
    assert judged_seeds(5) == [0, 1, 2, 3, 4]
    assert len(set(judged_seeds(9))) == 9
    assert not set(judged_seeds(9)) & set(SEEDS)


def test_searches_of_other_names_draw_other_settings(tmp_path: Path) -> None:
    def drawn(name: str) -> list[Settings]:
        tried = list[Settings]()

        def loss(settings: Settings, seed: int) -> Tried:
            tried.append(settings)
            return hill(settings, seed)

        search(name, KNOBS, loss, tmp_path, 3)
        return tried[len(SEEDS) :]

    assert drawn("a") != drawn("b")


def test_searches_of_other_names_are_apart(tmp_path: Path) -> None:
    first = search("a", KNOBS, hill, tmp_path, 3)
    second = search("b", KNOBS, lambda settings, seed: Tried(7.0, 0.0), tmp_path, 2)
    assert (first.trials, second.trials, second.loss) == (3, 2, 7.0)


def test_no_trials_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 trial or more, got 0"):
        search("a", KNOBS, hill, tmp_path, 0)


def test_settings_within_the_budget_come_before_better_ones_that_cost_more(tmp_path: Path) -> None:
    def score(settings: Settings, seed: int) -> Tried:
        return Tried(1 / settings["rounds"], BUDGET * settings["rounds"] / 4)

    found = search("dear", KNOBS, score, tmp_path, 25)
    assert found.settings["rounds"] == 4  # 9 were better
    assert found.pruned > 0
    assert found.over == 0  # the defaults are within it: no other that is not comes to the end


def test_of_a_method_that_is_never_within_the_budget_the_best_is_chosen(tmp_path: Path) -> None:
    def score(settings: Settings, seed: int) -> Tried:
        return Tried(1 / settings["rounds"], BUDGET * (1.1 + settings["rounds"]))

    found = search("always dear", KNOBS, score, tmp_path, 12)
    assert found.over == 12 - found.pruned
    assert found.loss == pytest.approx(1 / found.settings["rounds"])
    assert found.settings["rounds"] > 2
