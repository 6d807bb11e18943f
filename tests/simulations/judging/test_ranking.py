"""Ranks, the Friedman test and the critical difference, against published numbers and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare

from excise.simulations.judging.ranking import cliques, critical_difference, friedman, ranks_with_ties

# Demšar (2006), table 5a: critical values of the two-tailed Nemenyi test for 2 to 10 classifiers.
NEMENYI = {
    0.05: (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164),
    0.10: (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920),
}


@pytest.mark.parametrize("alpha", NEMENYI)
def test_critical_values_are_the_published_ones(alpha: float) -> None:
    for k, q in enumerate(NEMENYI[alpha], start=2):
        assert critical_difference(k, 1, alpha) / math.sqrt(k * (k + 1) / 6) == pytest.approx(q, abs=0.0011)


def test_demsars_example() -> None:
    """Four classifiers on 14 data sets: 1.25 at 5 %, 1.12 at 10 %."""
    assert critical_difference(4, 14, 0.05) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, 0.10) == pytest.approx(1.12, abs=0.005)


def test_friedman_of_nine_methods_on_two_data_sets() -> None:
    """An example asked about on Cross Validated (2018), with chi-square, F and p-values from R."""
    got = friedman([[1, 8, 6, 4, 7, 2, 5, 3, 9], [1, 6, 3, 9, 7, 2, 8, 4, 5]])
    assert (got.methods, got.scenarios) == (9, 2)
    assert got.mean_ranks == (1, 7, 4.5, 6.5, 7, 2, 6.5, 3.5, 7)
    assert (got.chi2, got.p) == pytest.approx((11.733, 0.1635), abs=0.0005)
    assert (got.f, got.p_f) == pytest.approx((2.75, 0.08697), abs=0.0005)


@given(
    table=st.integers(2, 8).flatmap(
        lambda n: st.integers(3, 6).flatmap(
            lambda k: st.lists(st.lists(st.integers(0, 4), min_size=k, max_size=k), min_size=n, max_size=n)
        )
    )
)
def test_friedman_is_scipys(table: list[list[int]]) -> None:
    """With ties too; scipy divides by zero where all tie."""
    assume(any(len(set(row)) > 1 for row in table))
    got, expected = friedman(table), friedmanchisquare(*np.array(table).T)
    assert (got.chi2, got.p) == pytest.approx((expected.statistic, expected.pvalue), abs=1e-9)
    assert sum(got.mean_ranks) == pytest.approx(got.methods * (got.methods + 1) / 2)


def test_friedman_at_its_ends() -> None:
    none = friedman([[1, 1, 1], [2, 2, 2]])
    assert (none.chi2, none.p, none.f, none.p_f, none.mean_ranks) == (0, 1, 0, 1, (2, 2, 2))
    every = friedman([[1, 2, 3]] * 6)
    assert every.chi2 == pytest.approx(12)
    assert (every.f, every.p_f) == (math.inf, 0)


def test_friedman_keeps_its_level() -> None:
    """Of tables without any difference about one in twenty is called different."""
    rng = np.random.default_rng(0)
    wrong = np.mean([friedman(rng.normal(size=(12, 5))).p_f < 0.05 for _ in range(600)])
    assert 0.02 < wrong < 0.08


def test_ranks_tie_where_seeds_do_not_decide() -> None:
    rng = np.random.default_rng(0)
    seed = rng.normal(size=10)
    values = {
        "far": seed + 5,
        "best": seed + 0.01 * rng.normal(size=10),
        "also": seed + 0.01 * rng.normal(size=10),
        "middle": seed + 1 + 0.01 * rng.normal(size=10),
    }
    told = {name: list(map(float, of)) for name, of in values.items()}
    assert ranks_with_ties(told) == {"far": 4, "best": 1, "also": 1, "middle": 3}
    assert ranks_with_ties({name: of[:1] for name, of in told.items()}) == dict.fromkeys(told, 1)
    assert ranks_with_ties({"one": [1.0, 2.0]}) == {"one": 1}


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_ranks_do_not_hang_on_the_order(rows: list[list[float]], random: object) -> None:
    told = {f"m{i}": row for i, row in enumerate(rows)}
    ranks = ranks_with_ties(told, resamples=100)
    assert min(ranks.values()) == 1
    assert max(ranks.values()) <= len(rows)
    back = dict(reversed(told.items()))
    assert ranks_with_ties(back, resamples=100) == ranks


def test_cliques() -> None:
    ranks = {"a": 1.0, "b": 1.8, "c": 2.4, "d": 4.0, "e": 6.0}
    assert cliques(ranks, 1.0) == [("a", "b"), ("b", "c")]
    assert cliques(ranks, 1.5) == [("a", "b", "c")]
    assert cliques(ranks, 2.0) == [("a", "b", "c"), ("c", "d")]  # exactly so far apart differs
    assert cliques(ranks, 10) == [("a", "b", "c", "d", "e")]
    assert cliques(ranks, 0.1) == []
    assert cliques({}, 1) == []


def test_refuses() -> None:
    with pytest.raises(ValueError, match="at least one method"):
        ranks_with_ties({})
    with pytest.raises(ValueError, match="the same seeds, got 2 and 1"):
        ranks_with_ties({"a": [1.0, 2.0], "b": [1.0]})
    for table, message in (([[1, 2]], "at least 2 along the first"), ([[1], [2]], "2 methods"), ([[1, np.nan]] * 2, "finite")):
        with pytest.raises(ValueError, match=message):
            friedman(table)
    for k, n, alpha in ((1, 5, 0.05), (3, 0, 0.05), (3, 5, 0.0), (3, 5, 1.0)):
        with pytest.raises(ValueError, match="expected 2 methods"):
            critical_difference(k, n, alpha)
    for ranks, cd in (({"a": math.nan}, 1.0), ({"a": 1.0}, 0.0), ({"a": 1.0}, math.nan)):
        with pytest.raises(ValueError, match="finite ranks"):
            cliques(ranks, cd)
