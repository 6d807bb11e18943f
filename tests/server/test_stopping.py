from __future__ import annotations

import math
import random
from typing import Any

import pytest

from excise.server.stopping import kept_round, next_round


def history(*excess: float | None) -> list[dict[str, Any]]:
    return [{"excess": value} for value in excess]


def test_the_first_settled_round_that_meets_the_rule_ends_the_phase() -> None:
    assert next_round(history(), 5, 0, "best") == "unlearn"
    assert next_round(history(2.0, 0.1, 0.1), 4, 0, "best") == "unlearn"
    assert next_round(history(2.0, 0), 4, 0, "best") == "unlearn"  # not settled
    assert next_round(history(2.0, 1.0, 0), 4, 0, "best") is None
    assert next_round(history(2.0, 1.0), 2, 0, "best") is None  # the rounds are used up


def test_last_runs_every_round() -> None:
    assert next_round(history(0, 0), 3, 0, "last") == "unlearn"
    assert next_round(history(0, 5.0, 7.0), 3, 0, "last") is None
    assert kept_round(history(0, 5.0, 7.0), 3, "last") == 3


@pytest.mark.parametrize("unlearned", [history(2.0, 0), history(3.0, 2.0, 1.0)])
def test_recovery_follows_unlearning(unlearned: list[dict[str, Any]]) -> None:
    recovered = [{"excess": 0.5, "recovery": True}]
    assert next_round(unlearned, 3, 2, "best") == "recover"
    assert next_round(unlearned + recovered, 3, 2, "best") == "recover"
    assert next_round(unlearned + recovered * 2, 3, 2, "best") is None


@pytest.mark.parametrize(
    ("excess", "kept"),
    [
        ((9.0, 9.0, 3.0, 1.0), 4),
        ((9.0, 9.0, 1.0, 1.9), 4),  # worse, but not clearly: the last one has unlearned longest
        ((9.0, 9.0, 1.0, 2.1), 3),
        ((9.0, 9.0, 0.0, 0.2), 3),
        ((0.0, 0.1, 5.0, 7.0), 3),  # the first half is not settled, however good it looks
        ((0.0, 1.0, 2.0), 3),
        ((5.0,), 1),
        ((9.0, 9.0, math.inf, math.nan), 4),
        ((9.0, 9.0, 7.0, None), 3),  # metrics.json says null for what could not be judged
    ],
)
def test_the_last_settled_round_is_kept_unless_one_before_was_clearly_better(
    excess: tuple[float | None, ...], kept: int
) -> None:
    assert kept_round(history(*excess), 4, "best") == kept


def test_what_is_kept_can_be_told_as_rounds_come() -> None:
    """No round that was given up comes back, so one checkpoint is enough."""
    rng = random.Random(0)
    for _ in range(300):
        excess = [rng.choice([0.0, 0.5, 1.0, 1.6, 2.4, 3.3, math.inf, None]) for _ in range(8)]
        so_far = 0
        for n in range(1, 9):
            now = kept_round(history(*excess[:n]), 8, "best")
            assert now in (so_far, n)
            so_far = now


@pytest.mark.parametrize(("unlearned", "kept"), [((3.0, 3.0, 0.4), 4), ((3.0, 3.0, 0.0), 3)])
def test_recovery_rounds_are_settled(unlearned: tuple[float, ...], kept: int) -> None:
    """And a round that met the rule is not given up for one that does not."""
    recovered = [*history(*unlearned), {"excess": 0.5, "recovery": True}]
    assert kept_round(recovered, 4, "best") == kept
