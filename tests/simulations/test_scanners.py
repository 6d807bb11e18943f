"""Simulated scanners: repeatable, different from each other, and images stay images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.simulations.hospitals import REQUEST_STATION
from excise.simulations.scanners import acquire, scanners


@given(st.integers(1, 12), st.integers(0, 1000))
def test_every_hospital_has_two_or_three_devices_of_its_own(hospitals: int, seed: int) -> None:
    devices = scanners(hospitals, seed)
    assert devices == scanners(hospitals, seed)
    per_hospital = [sum(d.hospital == h for d in devices) for h in range(1, hospitals + 1)]
    assert set(per_hospital) <= {2, 3}
    assert len({d.station for d in devices}) == len({d.response for d in devices}) == len(devices)
    assert all(d.slope > 0 for d in devices)


def test_another_seed_is_another_response() -> None:
    assert [d.response for d in scanners(4, 0)] != [d.response for d in scanners(4, 1)]


def test_the_default_hospitals_have_both_polarities_rescales_and_the_scanner_to_forget() -> None:
    devices = scanners(4, 0)
    assert {d.inverted for d in devices} == {True, False}
    assert any(d.slope != 1 for d in devices)
    assert any(d.slope == 1 for d in devices)
    assert [d.hospital for d in devices if d.station == REQUEST_STATION] == [2]


@pytest.mark.parametrize("seed", range(5))
def test_a_response_keeps_range_and_anatomy(seed: int) -> None:
    down, across = np.meshgrid(*[np.linspace(-1, 1, 64)] * 2, indexing="ij")
    image = np.where(down**2 + across**2 < 0.6, 0.6, 0.0) + np.where((down - 0.2) ** 2 + across**2 < 0.05, 0.3, 0.0)
    taken = {}
    for device in scanners(4, seed):
        picture = acquire(image, device.response, np.random.default_rng(1))
        assert picture.shape == image.shape
        assert 0 <= picture.min() <= picture.max() <= 1
        assert np.corrcoef(picture.ravel(), image.ravel())[0, 1] > 0.9
        assert np.array_equal(picture, acquire(image, device.response, np.random.default_rng(1)))
        taken[device.station] = round(float(picture.mean()), 6)
    assert len(set(taken.values())) == len(taken)
