"""Dealing one collection of images out to simulated sites, whole patients at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from excise.common.errors import ConfigError
from excise.simulations.scenario import Partition


@dataclass(frozen=True)
class Patient:
    """What dealing needs to know of a patient.

    Attributes
    ----------
    key : the patient
    images : number of images, at least 1
    label : most frequent class, or set of labels
    device : device of most images; None when the data names none
    matches : whether any image matches the request
    """

    key: str
    images: int
    label: int | tuple[int, ...]
    device: str | None
    matches: bool


def deal(patients: Sequence[Patient], partition: Partition, seed: int) -> dict[str, int]:
    """The site of every patient, numbered from 0.

    Raises
    ------
    ConfigError : fewer patients than sites, or `by-device` on data that names no device or fewer devices than sites
    """
    if len(patients) < partition.sites:
        raise ConfigError(f"{len(patients)} patients cannot be dealt to {partition.sites} sites; lower partition.sites")
    rng = np.random.default_rng(seed)
    order = [patients[i] for i in rng.permutation(len(patients))]
    if partition.kind == "iid":
        return _lightest(order, partition.sites)
    if partition.kind == "dirichlet":
        return _dirichlet(order, partition, rng)
    if partition.kind == "by-device":
        return _by_device(order, partition.sites)
    matching = {patient.key: 0 for patient in order if patient.matches}
    others = [patient for patient in order if not patient.matches]
    if len(others) < partition.sites:
        raise ConfigError(
            f"{len(others)} patients that do not match the request cannot be dealt to {partition.sites} sites; "
            "lower partition.sites"
        )
    return _lightest(others, partition.sites) | matching


def _lightest(order: Sequence[Patient], sites: int) -> dict[str, int]:
    """Each patient to the site with the fewest images so far."""
    load = [0] * sites
    dealt = {}
    for patient in order:
        site = load.index(min(load))
        load[site] += patient.images
        dealt[patient.key] = site
    return dealt


def _dirichlet(order: Sequence[Patient], partition: Partition, rng: np.random.Generator) -> dict[str, int]:
    """Each class spread over the sites in proportions drawn from a Dirichlet distribution (Hsu et al., 2019)."""
    classes = sorted({patient.label for patient in order}, key=lambda label: (label,) if isinstance(label, int) else label)
    shares = {c: rng.dirichlet([partition.alpha] * partition.sites) for c in classes}
    dealt = {patient.key: int(rng.choice(partition.sites, p=shares[patient.label])) for patient in order}
    # A site must have someone: give each empty one a patient of the fullest.
    for site in range(partition.sites):
        if site not in dealt.values():
            fullest = Counter(dealt.values()).most_common(1)[0][0]
            dealt[next(key for key, home in dealt.items() if home == fullest)] = site
    return dealt


def _by_device(order: Sequence[Patient], sites: int) -> dict[str, int]:
    images: Counter[str] = Counter()
    for patient in order:
        if patient.device is None:
            raise ConfigError("partition 'by-device' needs a device of every image; this data names none")
        images[patient.device] += patient.images
    if len(images) < sites:
        raise ConfigError(f"{len(images)} devices cannot be dealt to {sites} sites; lower partition.sites")
    load = [0] * sites
    home = {}
    for device, count in images.most_common():
        home[device] = load.index(min(load))
        load[home[device]] += count
    return {patient.key: home[str(patient.device)] for patient in order}
