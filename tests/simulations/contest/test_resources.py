"""What work took: its peak of memory though it is freed again, told anew each time, and left out where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from excise.simulations.contest import resources
from excise.simulations.contest.resources import used

MIB = 2**20


def _holds(mebibytes: int) -> int:
    return int(np.ones(mebibytes * MIB, dtype=np.uint8)[:7].sum())


def test_the_peak_is_told_though_nothing_is_left_of_it() -> None:
    large, small = used(lambda: _holds(200)), used(lambda: _holds(20))
    assert large.made == 7
    assert large.peak_bytes is not None
    assert small.peak_bytes is not None
    assert 190 * MIB < large.peak_bytes < 220 * MIB
    assert 15 * MIB < small.peak_bytes < 40 * MIB
    assert large.seconds >= 0


def test_where_the_system_does_not_tell_it_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PROC", tmp_path / "none")
    assert used(lambda: 5).peak_bytes is None
    assert used(lambda: 5).made == 5
