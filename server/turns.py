"""Who takes part in an unlearning round: every site that forgets, and of many others some, by turns.

The retain images of a step are shared by the sites that take part. Of dozens of sites each would have two or three: batch norm
has no statistics of so few, they hardly repair anything, and for them a model is sent, copied and sent back. So a round has
places for as many sites as can have `retain_batch_at_site` images each, unless rounds are too few for everyone's turn or too
many sites forget. (Federated averaging with a fraction of the sites: McMahan et al., 2017. Measured in
docs/adr/0033-sites-take-turns.md.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping

from excise.common.settings import LocalSettings

FEWEST_TURNS = 5
"""Of a round: so that no site stands alone for many, and a robust rule has sites among which to leave one out."""


def taking_part(
    forget: Mapping[str, int],
    retain: Mapping[str, int],
    settings: LocalSettings,
    had: Mapping[str, int],
    seed: int,
    away: Collection[str] = (),
) -> tuple[dict[str, int], dict[str, float]]:
    """Forget and retain images of the sites of the next round, as they weigh in it, by site.

    Of the sites without forget images those have a turn that had the fewest; among equals an order decides that `seed` draws.
    So none has two turns more than another, and each has one before the rounds are over, if all are run. They stand for all
    that take turns, and weigh as much.

    Parameters
    ----------
    forget, retain : n_k^f and n_k^r by site, over the same sites
    settings : with the retain batch of all sites together
    had : how many turns each site had, by name; none of those that are left out
    away : sites that are not connected; they have a turn only where too few others are left
    """
    others = [site for site, images in retain.items() if images and not forget[site]]
    places = settings.retain_batch // settings.retain_batch_at_site - sum(retain[site] > 0 for site in forget if forget[site])
    turns = min(len(others), max(places, math.ceil(len(others) / settings.rounds), FEWEST_TURNS))
    there = sorted(others, key=lambda site: (site in away, had.get(site, 0), _drawn(seed, site)))[:turns]
    for_all = sum(retain[site] for site in others) / sum(retain[site] for site in there) if there else 1.0
    of_retain = {site: retain[site] * (for_all if site in there else 1.0) for site in forget if site in there or forget[site]}
    return {site: forget[site] for site in of_retain}, of_retain


def _drawn(seed: int, site: str) -> bytes:
    return hashlib.sha256(f"{seed}/{site}".encode()).digest()
