from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.common.request import ForgetRequest
from excise.server.candidates import pareto_front, rank

DEPLOYED = {
    "forget_accuracy": 1.0,
    "retain_accuracy": 0.98,
    "held_out_accuracy": 0.9,
    "matched_held_out_accuracy": 0.86,
    "matched_forget_accuracy": 1.0,
    "membership_auc": 0.7,
}


def request(**changes: Any) -> ForgetRequest:
    wanted = {"id": "r", "kind": "device", "where": 'StationName = "MR7"', "reason": "a reason"}
    return ForgetRequest.model_validate(wanted | changes)


def audit(worst_site: float = 0.9, **changes: float) -> dict[str, Any]:
    pooled = DEPLOYED | {"forget_accuracy": 0.86, "membership_auc": 0.5} | changes
    pooled |= {"matched_forget_accuracy": pooled["forget_accuracy"]} | changes
    sites = {"a": {"held_out_accuracy": 0.9}, "b": {"held_out_accuracy": worst_site}}
    return {"pooled": pooled, "sites": sites}


BEFORE = audit(**DEPLOYED)


def chosen(candidates: dict[str, dict[str, Any]], wanted: ForgetRequest | None = None) -> str:
    (name,) = [name for name, standing in rank(BEFORE, candidates, wanted or request()).items() if standing.chosen]
    return name


points = st.dictionaries(
    st.sampled_from("abcdef"), st.fixed_dictionaries({k: st.integers(0, 4) | st.just(math.nan) for k in "xyz"}), min_size=1
)


@given(points)
def test_the_front_is_what_nothing_dominates(points: dict[str, dict[str, float]]) -> None:
    known = {name: [math.inf if math.isnan(point[k]) else point[k] for k in "xyz"] for name, point in points.items()}
    for name in points:
        beaten = any(
            all(a <= b for a, b in zip(other, known[name], strict=True)) and other != known[name] for other in known.values()
        )
        assert (name in pareto_front(points)) is not beaten
    assert pareto_front(points)


def test_objectives_are_gaps_and_losses_of_what_the_choice_sees() -> None:
    after = audit(forget_accuracy=0.8, retain_accuracy=0.97, membership_auc=0.44, worst_site=0.85)
    (standing,) = rank(BEFORE, {"a": after}, request()).values()
    assert standing.objectives == pytest.approx(
        {"forget gap": 0.06, "membership": 0.06, "retain loss": 0.01, "worst site loss": 0.05}
    )
    assert (standing.on_front, standing.chosen) == (True, True)


def test_a_class_should_be_forgotten_altogether() -> None:
    wanted = request(kind="class", where="class = 1")
    (standing,) = rank(BEFORE, {"a": audit(forget_accuracy=0.03)}, wanted).values()
    assert standing.objectives == pytest.approx({"forget gap": 0.03, "retain loss": 0.0, "worst site loss": 0.0})
    assert chosen({"a": audit(forget_accuracy=0.3), "b": audit(forget_accuracy=0.01)}, wanted) == "b"


def test_over_unlearning_is_as_far_off_as_too_little() -> None:
    assert chosen({"over": audit(forget_accuracy=0.79), "under": audit(forget_accuracy=0.9)}) == "under"


@pytest.mark.parametrize(("preference", "expected"), [(0.9, "forgets"), (0.1, "retains")])
def test_the_preference_picks_from_the_front(preference: float, expected: str) -> None:
    rule = {"retain_drop": 0.001, "membership_tolerance": 0.001}  # neither meets it
    candidates = {
        "forgets": audit(membership_auc=0.51, retain_accuracy=0.975),
        "retains": audit(membership_auc=0.52, retain_accuracy=0.978),
        "dominated": audit(membership_auc=0.53, retain_accuracy=0.974),
    }
    standings = rank(BEFORE, candidates, request(preference=preference, acceptance=rule))
    assert [name for name, standing in standings.items() if standing.on_front] == ["forgets", "retains"]
    assert [name for name, standing in standings.items() if standing.chosen] == [expected]


def test_what_meets_the_rule_comes_before_what_does_not() -> None:
    candidates = {"closer": audit(forget_accuracy=0.86, retain_accuracy=0.96), "met": audit(forget_accuracy=0.82)}
    assert rank(BEFORE, candidates, request())["closer"].excess > 0
    assert rank(BEFORE, candidates, request())["met"].excess == 0
    assert chosen(candidates, request(preference=0.9)) == "met"


def test_what_meets_the_rule_is_not_beaten_by_what_dominates_it_and_does_not() -> None:
    candidates = {"met": audit(forget_accuracy=0.82), "fails": audit(forget_accuracy=0.86, held_out_accuracy=0.88)}
    standings = rank(BEFORE, candidates, request())
    assert (standings["met"].on_front, standings["met"].chosen, standings["fails"].excess > 0) == (False, True, True)


@pytest.mark.parametrize("preference", [0.0, 0.5, 1.0])
def test_what_nobody_could_measure_weighs_nothing(preference: float) -> None:
    unknown = {"membership_auc": math.nan}
    candidates = {
        "worse": audit(retain_accuracy=0.5, forget_accuracy=0.7, **unknown),
        "better": audit(retain_accuracy=0.98, forget_accuracy=0.8, **unknown),
    }
    assert chosen(candidates, request(preference=preference)) == "better"


def test_the_forget_gap_is_over_classes_that_both_sets_told() -> None:
    after = audit(forget_accuracy=0.7, matched_forget_accuracy=0.86)
    (standing,) = rank(BEFORE, {"a": after}, request()).values()
    assert standing.objectives["forget gap"] == pytest.approx(0)


def test_equal_candidates_the_first_and_unknown_ones_last() -> None:
    assert chosen({"b": audit(), "a": audit()}) == "b"
    assert chosen({"unknown": audit(membership_auc=math.nan), "known": audit(membership_auc=0.9)}) == "known"
    assert chosen({"unknown": audit(membership_auc=math.nan)}) == "unknown"
