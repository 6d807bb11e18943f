"""DARE: drop and rescale each update, then take the mean (Yu et al., "Language models are super Mario", ICML 2024).

    Δ̂_k  = m_k ⊙ Δ_k / (1 − p),   m_k ~ Bernoulli(1 − p) coordinate by coordinate;    θ ← θ_in + Σ_k p_k·Δ̂_k / Σ_k p_k

Sparse updates of different sites seldom meet in a coordinate, so they interfere less; the expectation is the mean's. The mask
is drawn from the update's own digest: another one each round, the same one when a run is repeated. Statistics are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from excise.common.weights import digest, is_statistic
from excise.server.composition.composer import Update
from excise.server.composition.mean import Mean


class Dare(Mean):
    """The mean of randomly thinned updates."""

    def __init__(self, base: Mapping[str, Tensor], drop: float = 0.5) -> None:
        """`drop`, p, in [0, 1), is the share of coordinates set to 0. The paper has 0.9 and more, on larger models."""
        if not 0 <= drop < 1:
            raise ValueError(f"drop must lie in [0, 1), got {drop}")
        super().__init__(base)
        self._drop = drop

    def _take(self, update: Update) -> None:
        generator = Generator().manual_seed(int(digest(update.delta)[:15], 16))
        thinned = {name: x if is_statistic(name) else self._thinned(x, generator) for name, x in sorted(update.delta.items())}
        self._sum.add(thinned, update.weight)

    def _thinned(self, x: Tensor, generator: Generator) -> Tensor:
        kept = torch.rand(x.shape, generator=generator) >= self._drop
        return torch.where(kept, x / (1 - self._drop), torch.zeros_like(x))
