"""What a site may say of its images' places: a reply that cannot be is known by a code, by its gate and the coordinator."""

from __future__ import annotations

import math
from typing import Any

import pytest

from excise.common.embedding import DIMS, FARTHEST, FAULTS, MOST, UNTOLD, moments_fault, points_fault, triangle

HONEST: dict[str, Any] = {
    "before": (0.0, 1.0, -255.0, 255.0),
    "after": (2.0, 3.0, 4.0, -5.0),
    "groups": (0.0, 2.0),
    "labels": (1.0, 0.0),
    "classes": 2,
    "most": 1,
}


def test_an_honest_reply_has_no_fault() -> None:
    assert points_fault(**HONEST) == ""
    assert points_fault((), (), (), (), 2, 500) == ""
    assert points_fault(**{**HONEST, "labels": (UNTOLD, UNTOLD), "classes": 0}) == ""
    assert moments_fault(10, (0.5, -0.5), (1.0, -0.2, 1.0)) == ""
    assert moments_fault(10, (0.0,) * DIMS, (1.0,) * triangle(DIMS)) == ""
    assert moments_fault(0, (), ()) == ""


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"after": (2.0, 3.0)}, "shapes"),
        ({"before": (0.0, 1.0, 2.0)}, "shapes"),
        ({"labels": (1.0,)}, "shapes"),
        ({"groups": (0.0, 3.0)}, "labels"),
        ({"groups": (0.0, 0.5)}, "labels"),
        ({"groups": (0.0, math.nan)}, "labels"),
        ({"labels": (0.0, 2.0)}, "labels"),
        ({"labels": (0.0, UNTOLD)}, "labels"),
        ({"classes": 0}, "labels"),
        ({"groups": (2.0, 2.0)}, "points"),
        ({"before": (0.0, 1.0, 2.0, 0.5)}, "range"),
        ({"after": (0.0, 1.0, 2.0, FARTHEST + 1.0)}, "range"),
        ({"after": (0.0, 1.0, 2.0, math.nan)}, "range"),
        ({"after": (0.0, 1.0, 2.0, -math.inf)}, "range"),
    ],
)
def test_points_that_cannot_be(changed: dict[str, Any], code: str) -> None:
    assert points_fault(**{**HONEST, **changed}) == code
    assert code in FAULTS


def test_no_more_points_than_any_site_shows_whatever_was_asked() -> None:
    many = MOST + 1
    assert points_fault((0.0,) * 2 * many, (0.0,) * 2 * many, (1.0,) * many, (0.0,) * many, 2, 10**9) == "points"


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ((10, (0.5, 0.5), (1.0, 0.0)), "shapes"),
        ((0, (0.5, 0.5), (1.0, 0.0, 1.0)), "shapes"),
        ((10, (), ()), "shapes"),
        ((10, (0.0,) * (DIMS + 1), (1.0,) * triangle(DIMS + 1)), "shapes"),
        ((-1, (), ()), "range"),
        ((10, (0.5, 0.5), (1.0, 0.0, -1.0)), "range"),
        ((10, (0.5, 0.5), (-1.0, 0.0, 1.0)), "range"),
        ((10, (0.5, math.inf), (1.0, 0.0, 1.0)), "range"),
        ((10, (0.5, 0.5), (1.0, math.nan, 1.0)), "range"),
        ((10, (0.5, 0.5), (1.0, 0.0, math.nan)), "range"),
        ((10, (0.5, 0.5), (1e300, 0.0, 1.0)), "range"),
    ],
)
def test_moments_that_cannot_be(told: tuple[Any, Any, Any], code: str) -> None:
    assert moments_fault(*told) == code
