"""The soak: flaky sites fail as they should, growth is found, and the page says what was measured."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from excise.simulations.bench import soak as module
from excise.simulations.bench.soak import Slope, Soaked, resident, slope, soak
from excise.simulations.bench.soak_page import LIMIT, is_flat, write_soak_page


def test_a_short_soak_measures_every_round_and_soaks_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLAKY", 0.2)  # two of ten
    monkeypatch.setattr(module, "FAILS", 0.6)
    monkeypatch.setattr(module, "SILENT", 0.2)
    told: list[str] = []
    found = soak(10, 6, tmp_path, told.append, deadline=0.5)
    assert (found.sites, found.rounds, len(found.megabytes), len(told)) == (10, 6, 6, 6)
    assert all(10 < megabytes < 10_000 for megabytes in found.megabytes)
    assert {"malformed", "no_answer", "not_finite"} == set(found.refused)
    assert found.late > 0


def test_memory_of_this_process_is_seen() -> None:
    before = resident()
    held = mmap.mmap(-1, 64 << 20)  # from the system: an array may get memory that is in use already
    np.frombuffer(held, np.uint8)[:] = 1
    assert 40 < resident() - before < 100
    held.close()


def test_growth_of_the_second_half_is_found_whatever_single_rounds_do() -> None:
    rounds = np.arange(100)
    memory = 900 + np.where(rounds < 50, rounds * 3.0, 150) + np.where(rounds >= 50, 0.02 * (rounds - 50), 0)
    memory[[60, 80]] += 500  # a garbage collection that came late
    found = slope(memory.tolist())
    assert found.value == pytest.approx(2.0)
    assert found.low <= found.value <= found.high
    assert not is_flat(found)
    assert slope([900.0] * 100) == Slope(0, 0, 0)


@pytest.mark.parametrize(("growth", "word"), [(0.0, "yes"), (LIMIT * 1.01, "**no**"), (-3.0, "yes")])
def test_the_page_judges_what_was_measured(tmp_path: Path, growth: float, word: str) -> None:
    memory = tuple(900 + growth * round_ / 100 for round_ in range(40))
    write_soak_page(tmp_path / "soak.md", Soaked(50, 40, memory, {"malformed": 3, "no_answer": 2}, 1, 600))
    text = (tmp_path / "soak.md").read_text()
    assert f"{abs(growth):.2f} MiB in 100 rounds" in text
    assert f"| {word} |" in text
    assert "| refused: `malformed` | 3 |" in text
    assert "| came late, not used: `late` | 1 |" in text
    picture = (tmp_path / "soak.svg").read_text()
    assert picture.startswith("<svg")
    assert "soak.svg" in text
