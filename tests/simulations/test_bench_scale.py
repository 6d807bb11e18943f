"""Scale: a few sites measured as a whole, growth of known powers, and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress

from excise.common.errors import ConfigError
from excise.simulations.bench import processes, scale_memory
from excise.simulations.bench.scale import Scaled, power, rounds_of, scale
from excise.simulations.bench.scale_memory import MIB, Held
from excise.simulations.bench.scale_page import goals, write_scale_page

SITES = (4, 16, 64, 256, 1000)


def made_up(sites: int, **changed: Any) -> Scaled:
    held = Held(update=MIB, rounds=(20.0, 21.0, 22.0), whole=25.0, numbers=MIB + 2048 * sites, seconds=(sites / 100,) * 3)
    seconds = tuple(factor * sites / 20 for factor in (0.9, 1.0, 40.0))  # the last was disturbed
    return Scaled(sites, seconds, (sites / 40,) * 3, down=71_680, up=30_720, held=replace(held, **changed))


GOOD = [made_up(sites) for sites in SITES]


def test_a_few_sites_are_measured_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process: three further ones would each take seconds to import torch. What `alone` does, composing's test shows.
    monkeypatch.setattr(processes, "alone", lambda work, *args: work(*args))
    monkeypatch.setattr(scale_memory, "ROUNDS", 1)
    told: list[str] = []
    found = scale((4, 2, 3, 2), lambda sites: 2, tmp_path, told.append)
    assert [one.sites for one in found] == [2, 3, 4]
    for one in found:
        assert len(one.seconds) == len(one.processor) == 2
        assert min(*one.seconds, *one.processor, *one.held.seconds) > 0
        # A net of 16,642 weights: 8 maps of 3 × 3, 128 hidden, 2 classes; biases too.
        weights = 4 * (8 * 9 + 8 + 128 * 128 + 128 + 128 * 2 + 2)
        assert weights < one.up < weights + 5_000
        assert weights < one.down < weights + 10_000
        assert one.held.update == 4 * (32 * 9 + 32 + 512 * 512 + 512 + 512 * 2 + 2)
        assert len(one.held.rounds) == 1
        assert 0 <= max(one.held.rounds) <= one.held.whole < 200  # no growth where earlier tests left memory free
        assert one.held.numbers > 10_000
    assert max(one.down for one in found) - min(one.down for one in found) < 500  # the same for each, however many
    assert "4 sites: round 2 of 2" in told
    write_scale_page(tmp_path / "scale.md", found)
    assert (tmp_path / "scale.svg").read_text().startswith("<svg")


def test_powers_are_found() -> None:
    linear = power(SITES, [0.3 * sites for sites in SITES])
    assert (linear.value, linear.low, linear.high) == pytest.approx((1, 1, 1))
    flat = power(SITES, [7.0] * 5)
    assert (flat.value, flat.low, flat.high) == pytest.approx((0, 0, 0))
    values = [sites**1.5 * factor for sites, factor in zip(SITES, (1, 1.1, 0.9, 1.1, 1), strict=True)]
    noisy = power(SITES, values)
    expected = linregress(np.log(SITES), np.log(values))
    assert noisy.low < 1.5 < noisy.high
    assert noisy.value == pytest.approx(expected.slope)
    assert noisy.high - noisy.value == pytest.approx(3.182446 * expected.stderr)  # Student's t, 3 degrees of freedom


def test_there_are_more_rounds_where_they_are_short() -> None:
    assert [rounds_of(sites) for sites in SITES] == [12, 12, 4, 3, 3]


@pytest.mark.parametrize(
    ("number", "missed"),
    [
        (0, [replace(one, seconds=(one.sites**1.3,) * 3) for one in GOOD]),
        (1, [replace(one, processor=(one.sites**1.3,) * 3) for one in GOOD]),
        (2, [made_up(sites, rounds=(20.0 + sites,) * 3) for sites in SITES]),
    ],
)
def test_what_is_missed_is_told(tmp_path: Path, number: int, missed: list[Scaled]) -> None:
    assert all(reached for *_, reached in goals(GOOD))
    assert [at for at, (*_, reached) in enumerate(goals(missed)) if not reached] == [number]
    write_scale_page(tmp_path / "scale.md", missed)
    assert (tmp_path / "scale.md").read_text().count("| **no** |") == 1


def test_the_page_tells_medians(tmp_path: Path) -> None:
    write_scale_page(tmp_path / "scale.md", GOOD)
    text = " ".join((tmp_path / "scale.md").read_text().split())
    assert text.count("| yes |") == 3
    assert "| 1,000 | 50.00 | 50.0 | 25.0 | 10.0 |" in text
    assert "| 1,000 | 22.0 | 25.0 | 3.0 | 1,000.0 |" in text
    assert "2.0 KiB for each further site" in text
    assert "| 256 | 70.0 | 30.0 |" in text
    assert "scale.svg" in text


@pytest.mark.parametrize("numbers", [(), (4, 16), (4, 4, 16), (1, 4, 16)])
def test_too_few_numbers_of_sites_are_refused(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="three different numbers"):
        scale(numbers, rounds_of, tmp_path, lambda _: None)


@pytest.mark.parametrize("options", [("--sites", "4"), ("--rounds", "1"), ("--sites", "few")])
def test_bad_options_end_with_code_2(excise: Callable[..., tuple[int, str, str]], options: tuple[str, ...]) -> None:
    code, _, error = excise("bench", "scale", *options)
    assert code == 2
    assert options[0] in error
