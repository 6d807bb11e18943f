"""Weighted mean of the updates:  θ ← θ_in + Σ_k p_k·Δ_k / Σ_k p_k.

With the weights p_k of `server/weighting.py` this is federated averaging on the unlearning objective F. Dividing by the sum
of the weights that came keeps it a mean when a site is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from excise.server.composition.composer import Composer, Update
from excise.server.composition.exact import ExactSum


class Mean(Composer):
    """Streaming weighted mean: one sum, whatever the number of sites."""

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        super().__init__(base)
        self._sum = ExactSum(base)

    def _take(self, update: Update) -> None:
        self._sum.add(update.delta, update.weight)

    def _delta(self) -> Mapping[str, Tensor]:
        return self._sum.mean()
