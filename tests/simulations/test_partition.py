"""Dealing patients out to sites."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.common.errors import ConfigError
from excise.simulations.partition import Patient, deal
from excise.simulations.scenario import Partition

KINDS: tuple[Any, ...] = get_args(Partition.model_fields["kind"].annotation)


@st.composite
def collections(draw: st.DrawFn, sites: int = 1) -> list[Patient]:
    """Patients of a few classes and devices; one device at least for each site, and a patient apart from those that match."""
    rows = draw(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3), st.integers(0, 9)), min_size=2 * sites, max_size=60))
    return [
        Patient(f"p{i}", images, label, f"d{i if i < sites else device}", matches=i >= sites and device == 0)
        for i, (images, label, device) in enumerate(rows)
    ]


site_counts = st.integers(1, 6)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), sites=site_counts, seed=st.integers(0, 2**32), alpha=st.floats(0.01, 100))
def test_every_patient_is_at_exactly_one_site_and_no_site_is_empty(
    kind: Any, data: st.DataObject, sites: int, seed: int, alpha: float
) -> None:
    patients = data.draw(collections(sites))
    partition = Partition(sites=sites, kind=kind, alpha=alpha)
    dealt = deal(patients, partition, seed)
    assert dealt.keys() == {patient.key for patient in patients}
    assert set(dealt.values()) == set(range(sites))
    assert deal(patients, partition, seed) == dealt


@given(collections(6), site_counts, st.integers(0, 99))
def test_iid_differs_by_no_more_than_the_largest_patient(patients: list[Patient], sites: int, seed: int) -> None:
    dealt = deal(patients, Partition(sites=sites), seed)
    load = Counter(dict.fromkeys(range(sites), 0))
    for patient in patients:
        load[dealt[patient.key]] += patient.images
    assert max(load.values()) - min(load.values()) <= max(patient.images for patient in patients)


def test_iid_spreads_classes() -> None:
    patients = [Patient(str(i), 1, i % 2, None, matches=False) for i in range(400)]
    dealt = deal(patients, Partition(sites=4), 0)
    for site in range(4):
        ones = sum(patient.label for patient in patients if dealt[patient.key] == site)
        assert 30 <= ones <= 70


@given(collections(6), site_counts, st.integers(0, 99))
def test_by_device_keeps_devices_whole(patients: list[Patient], sites: int, seed: int) -> None:
    dealt = deal(patients, Partition(sites=sites, kind="by-device"), seed)
    sites_of = defaultdict(set)
    for patient in patients:
        sites_of[patient.device].add(dealt[patient.key])
    assert all(len(found) == 1 for found in sites_of.values())


@given(collections(6), site_counts, st.integers(0, 99))
def test_forget_on_one_site_gives_all_that_match_to_the_first(patients: list[Patient], sites: int, seed: int) -> None:
    dealt = deal(patients, Partition(sites=sites, kind="forget-on-one-site"), seed)
    assert all(dealt[patient.key] == 0 for patient in patients if patient.matches)


def test_dirichlet_is_more_uneven_the_smaller_alpha_is() -> None:
    patients = [Patient(str(i), 1, i % 2, None, matches=False) for i in range(1000)]

    def unevenness(alpha: float) -> float:
        total = 0
        for seed in range(10):
            dealt = deal(patients, Partition(sites=4, kind="dirichlet", alpha=alpha), seed)
            counts = Counter((dealt[p.key], p.label) for p in patients)
            total += sum(abs(counts[site, c] - 125) for site in range(4) for c in (0, 1))
        return total

    assert unevenness(0.1) > unevenness(1) > unevenness(100)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_patients_than_sites_is_an_error(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"2 patients cannot be dealt to 3 sites; lower partition\.sites"):
        deal([Patient(str(i), 1, 0, str(i), matches=False) for i in range(2)], Partition(sites=3, kind=kind), 0)


def test_by_device_needs_devices() -> None:
    patients = [Patient("a", 1, 0, "d", matches=False), Patient("b", 1, 0, None, matches=False)]
    with pytest.raises(ConfigError, match="this data names none"):
        deal(patients, Partition(sites=2, kind="by-device"), 0)
    with pytest.raises(ConfigError, match="1 devices cannot be dealt to 2 sites"):
        deal([patients[0], patients[0]], Partition(sites=2, kind="by-device"), 0)


def test_forget_on_one_site_leaves_no_site_empty() -> None:
    patients = [Patient(str(i), 1, 0, None, matches=i < 4) for i in range(5)]  # one patient for the two other sites
    with pytest.raises(ConfigError, match=r"1 patients that do not match .* 3 sites; lower partition\.sites"):
        deal(patients, Partition(sites=3, kind="forget-on-one-site"), 0)
