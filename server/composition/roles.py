"""Robust rules act within one role only.

Across roles they would undo the unlearning: of the updates {Δ_f, 0, 0, …} the median is 0, and a distance test discards the
only site that forgets. So forget-holding and retain-only sites each get a robust centre, and the two are joined by weight:

    θ ← θ_in + ( P_F·centre(F) + P_R·centre(R) ) / ( P_F + P_R ),     P = Σ p_k of the role

Within a role every site counts once: its weight follows from counts that it told itself. A robust centre needs every update at
once, so memory grows with the number of sites.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from excise.common.weights import Weights, floating
from excise.server.composition.composer import Composer, Update


class RobustRule(Composer):
    """Keeps the updates by role, and joins the centres that a rule finds in each."""

    streaming: ClassVar[bool] = False

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        super().__init__(base)
        self._roles: dict[bool, list[Update]] = {True: [], False: []}

    def _take(self, update: Update) -> None:
        kept = {name: update.delta[name].clone() for name in floating(self.base)}
        self._roles[update.forgets].append(Update(update.site, kept, update.weight, update.forgets))

    def _delta(self) -> Weights:
        joined: Weights = {}
        roles = [sorted(updates, key=lambda update: update.site) for updates in self._roles.values() if updates]
        weights = [math.fsum(update.weight for update in updates) for updates in roles]  # fsum: exact, so free of order
        for updates, weight in zip(roles, weights, strict=True):
            for name, centre in self.centre(updates).items():
                part = weight / math.fsum(weights) * centre.double()
                joined[name] = joined[name] + part if name in joined else part
        return joined

    @abstractmethod
    def centre(self, updates: Sequence[Update]) -> Mapping[str, Tensor]:
        """The robust centre of the updates of one role, of which there is at least one; sorted by site."""


def stacked(updates: Sequence[Update], name: str) -> Tensor:
    """One tensor of every update, float64, shape (K, *shape)."""
    return torch.stack([update.delta[name].double() for update in updates])
