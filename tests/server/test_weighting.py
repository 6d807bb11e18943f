"""Weights of the sites in the objective: shares that sum to one, whatever the sizes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from excise.server.weighting import objective_weights, size_weights

counts = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=1, max_size=12)
psis = st.floats(0.001, 1)


def split(sizes: list[tuple[int, int]]) -> tuple[dict[str, int], dict[str, int]]:
    return {f"s{i}": f for i, (f, _) in enumerate(sizes)}, {f"s{i}": r for i, (_, r) in enumerate(sizes)}


@given(counts, psis)
def test_objective_weights_are_shares(sizes: list[tuple[int, int]], psi: float) -> None:
    forget, retain = split(sizes)
    assume(sum(forget.values()) and sum(retain.values()))
    weights = objective_weights(forget, retain, psi)
    assert sum(w.p for w in weights.values()) == pytest.approx(1)
    assert all(0 < w.p <= 1 + 1e-12 and 0 <= w.a <= 1 for w in weights.values())
    # Σ p_k·a_k is the weight of forgetting in F, and p_k·a_k that of one site's forget images.
    assert sum(w.p * w.a for w in weights.values()) == pytest.approx(psi)
    for site, weight in weights.items():
        assert weight.p * weight.a == pytest.approx(psi * forget[site] / sum(forget.values()))
        assert (weight.a == 0) == (forget[site] == 0)


@given(counts, psis)
def test_a_site_is_left_out_only_when_it_has_no_part(sizes: list[tuple[int, int]], psi: float) -> None:
    forget, retain = split(sizes)
    assume(sum(forget.values()) and sum(retain.values()))
    left_out = forget.keys() - objective_weights(forget, retain, psi).keys()
    assert left_out == {site for site in forget if forget[site] == 0 and (retain[site] == 0 or psi == 1)}


@given(counts, psis)
def test_size_weights_are_shares(sizes: list[tuple[int, int]], psi: float) -> None:
    forget, retain = split(sizes)
    assume(sum(forget.values()) + sum(retain.values()))
    weights = size_weights(forget, retain, psi)
    assert sum(w.p for w in weights.values()) == pytest.approx(1)
    assert all(w.p > 0 and 0 <= w.a <= 1 for w in weights.values())
    assert forget.keys() - weights.keys() == {site for site in forget if forget[site] + retain[site] == 0}


@pytest.mark.parametrize(
    ("forget", "retain", "psi"),
    [({"a": 0}, {"a": 5}, 0.5), ({"a": 3}, {"a": 0}, 0.5), ({"a": 0}, {"a": 0}, 1.0)],
    ids=["nothing to forget", "nothing to retain", "nothing at all"],
)
def test_an_objective_without_images_is_an_error(forget: dict[str, int], retain: dict[str, int], psi: float) -> None:
    with pytest.raises(ValueError, match="needs forget and retain images"):
        objective_weights(forget, retain, psi)


def test_forgetting_alone_needs_no_retain_images() -> None:
    (weight,) = objective_weights({"a": 3}, {"a": 0}, 1.0).values()
    assert (weight.p, weight.a) == (1, 1)


def test_one_small_site_among_many_is_not_diluted() -> None:
    forget = {"small": 10, **{f"big-{i}": 0 for i in range(99)}}
    retain = {"small": 10, **{f"big-{i}": 1000 for i in range(99)}}
    ours, plain = objective_weights(forget, retain, 0.4)["small"], size_weights(forget, retain, 0.4)["small"]
    assert ours.p * ours.a == pytest.approx(0.4)
    assert plain.p * plain.a < 1e-4
