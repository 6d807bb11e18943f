"""Coordinate-wise median within each role (Yin et al., "Byzantine-robust distributed learning", ICML 2018).

Holds as long as fewer than half of a role's sites are faulty. Of an even number of sites it is the mean of the middle two.
"""

from __future__ import annotations

from collections.abc import Sequence

from excise.common.weights import Weights
from excise.server.composition.composer import Update
from excise.server.composition.roles import RobustRule, stacked


class Median(RobustRule):
    """Median of each coordinate."""

    def centre(self, updates: Sequence[Update]) -> Weights:
        return {name: stacked(updates, name).quantile(0.5, dim=0) for name in updates[0].delta}
