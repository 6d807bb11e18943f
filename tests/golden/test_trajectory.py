"""The search goes today where it went when its trajectory was written down; `regenerate.py` says how to renew it."""

from __future__ import annotations

import pytest

from tests.golden.regenerate import GOLDEN, trajectory


def test_search_repeats_the_golden_trajectory() -> None:
    golden, now = GOLDEN.read_text(encoding="utf-8").splitlines(), trajectory().splitlines()
    assert len(now) == len(golden)
    for line, (expected, got) in enumerate(zip(golden, now, strict=True), start=1):
        if expected.startswith(("#", "steps")):
            assert got == expected, f"line {line}"
            continue
        old, new = ([float(word) for word in text.removeprefix("ascent").split()] for text in (expected, got))
        assert new == pytest.approx(old, abs=1.1e-5, nan_ok=True), f"line {line}"  # one unit of the last decimal
