"""Where ours is worse than the retrained model by what nobody is ranked by: what comes back, is still there, or was harmed."""

from __future__ import annotations

import math
from functools import partial

from excise.server.report import three
from excise.simulations.contest.record import Record
from excise.simulations.contest.report.contests import Contest, gap
from excise.simulations.contest.report.standing import mean

WORTH_TELLING = 0.05
"""Smallest distance from the retrained model that is told, in units of accuracy."""
WATCHED = {
    "resurfaced": (1, "an epoch on retain images alone brings {} more of the forgotten back than in the retrained model"),
    "came_back": (1, "{} more of what earlier requests forgot came back with later ones than in the retrained models"),
    "ulira_auc": (1, "an attacker for each image tells the forgotten by {} more than in the retrained model"),
    "rmia_auc": (1, "an attacker with a population tells the forgotten by {} more than in the retrained model"),
    "probe_accuracy": (1, "a fresh head tells {} more of the forgotten from the features than of the retrained model's"),
    "near_retain_accuracy": (
        -1,
        "{} less of the retain images nearest to the forget set is right than in the retrained model",
    ),
    "worst_site_accuracy": (-1, "{} less is right at the worst site than in the retrained model"),
}
"""By metric: the sign of a gap that is bad, and what is said of one."""
NAMES = {"ulira_auc": "U-LiRA", "rmia_auc": "RMIA"}
"""Of metrics that are not called as their key is."""


def worse_beside(contest: Contest) -> dict[str, str]:
    """What is said, by the metric's name in words: gaps that are worth telling and that seeds do not leave open.

    One seed leaves nothing open. Nothing where ours was not run, or failed.
    """
    ours = contest.ours
    if ours is None or ours.failed:
        return {}
    found = {}
    for key, (bad, words) in WATCHED.items():
        gaps = ours.over(contest.seeds_of(key), partial(_gap, key))
        if not gaps or not all(map(math.isfinite, gaps)):
            continue
        over = mean(gaps)
        if bad * over.mean >= WORTH_TELLING and (over.decided or over.values == 1):
            name = NAMES.get(key, key.removesuffix("_accuracy").replace("_", " "))
            found[name] = f"{words.format(three(abs(over.mean)))}."
    return found


def _gap(key: str, record: Record) -> float:
    return gap(record.values, record.retrained, key)
