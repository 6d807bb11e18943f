"""Weights of the federated objective, so that nothing blows up and nothing is diluted whatever the number of sites.

    server weight    p_k = ψ·n_k^f/N_f + (1−ψ)·n_k^r/N_r            sums to 1
    forget share     a_k = ψ·(n_k^f/N_f)/p_k                        0 without forget images

Site k trains on a_k·L_k^f + (1−a_k)·L_k^r, and Σ_k p_k·(site objective) is exactly F: the p_k-weighted mean of the updates
is federated averaging on F. Weighting by data size optimises another objective, in which one small forget-holding site among
many hardly counts; it is kept as `fedavg` for comparison. Where sites take turns, n_k^r is what the site stands for
(`server/turns.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SiteWeight:
    """p_k and a_k of one site, both in [0, 1]."""

    p: float
    a: float


def objective_weights(forget: Mapping[str, int], retain: Mapping[str, float], psi: float) -> dict[str, SiteWeight]:
    """p_k and a_k of every site that has a part in F; sites without one are left out.

    Parameters
    ----------
    forget, retain : n_k^f and n_k^r by site, over the same sites; n_k^r need not be whole
    psi : ψ in (0, 1]

    Raises
    ------
    ValueError : no forget image anywhere, or ψ < 1 without a retain image anywhere
    """
    n_f, n_r = sum(forget.values()), sum(retain.values())
    if n_f == 0 or (psi < 1 and n_r == 0):
        raise ValueError(f"the objective needs forget and retain images, got {n_f} and {n_r}")
    weights = {}
    for site in forget:
        f = psi * forget[site] / n_f
        r = (1 - psi) * retain[site] / n_r if psi < 1 else 0.0
        if f + r > 0:
            weights[site] = SiteWeight(p=f + r, a=f / (f + r))
    return weights


def size_weights(forget: Mapping[str, int], retain: Mapping[str, float], psi: float) -> dict[str, SiteWeight]:
    """Plain federated averaging: p_k by number of images, a_k as a site alone would choose it (ψ where it can forget)."""
    total = sum(forget.values()) + sum(retain.values())
    weights = {}
    for site in forget:
        if forget[site] + retain[site] == 0:
            continue
        a = 0.0 if forget[site] == 0 else 1.0 if retain[site] == 0 else psi
        weights[site] = SiteWeight(p=(forget[site] + retain[site]) / total, a=a)
    return weights


def retain_weights(retain: Mapping[str, int]) -> dict[str, SiteWeight]:
    """Federated averaging on the retain loss alone: p_k = n_k^r/N_r, a_k = 0; sites without retain images are left out."""
    total = sum(retain.values())
    return {site: SiteWeight(p=n / total, a=0.0) for site, n in retain.items() if n > 0}
