"""Who takes part in an unlearning round: every site that forgets, and of many others some, by turns.

The retain images of a step are shared by the sites that take part. Of dozens of sites each would have two or three: batch norm
has no statistics of so few, they hardly repair anything, and for them a model is sent, copied and sent back. So a round has
places for no more sites than can have `retain_batch_at_site` images each. (Federated averaging with a fraction of the sites:
McMahan et al., 2017. Measured in docs/adr/0033-sites-take-turns.md.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from excise.common.settings import LocalSettings


def taking_part(
    forget: Mapping[str, int], retain: Mapping[str, int], settings: LocalSettings, round_index: int
) -> tuple[dict[str, int], dict[str, float]]:
    """Forget and retain images of the sites of one round, as they weigh in it, by site.

    Sites without forget images take turns in the order of their names, so that none has two more than another, and each has
    one before the rounds are over. Those whose turn it is stand for all of them: they weigh as much as all do.

    Parameters
    ----------
    forget, retain : n_k^f and n_k^r by site, over the same sites
    settings : with the retain batch of all sites together
    round_index : 0-based
    """
    others = sorted(site for site, images in retain.items() if images and not forget[site])
    places = settings.retain_batch // settings.retain_batch_at_site - sum(retain[site] > 0 for site in forget if forget[site])
    turns = min(len(others), max(places, math.ceil(len(others) / settings.rounds)))
    there = {others[(round_index * turns + turn) % len(others)] for turn in range(turns)}
    for_all = sum(retain[site] for site in others) / sum(retain[site] for site in there) if there else 1.0
    of_retain = {site: retain[site] * (for_all if site in there else 1.0) for site in forget if site in there or forget[site]}
    return {site: forget[site] for site in of_retain}, of_retain
