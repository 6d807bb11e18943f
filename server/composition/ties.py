"""TIES: trim, elect a sign, merge what agrees with it (Yadav et al., "TIES-Merging", NeurIPS 2023).

    Δ̂_k  = Δ_k where |Δ_k| is among the `density` largest of the site's parameters, else 0
    γ     = sign( Σ_k p_k·Δ̂_k )                                         elected coordinate by coordinate
    θ     ← θ_in + s·( Σ_{k∈A} p_k·Δ̂_k / Σ_{k∈A} p_k ),   A = sites whose Δ̂_k has the sign γ

Sites that are pulled apart by noise in small coordinates no longer cancel each other's large ones. Streaming: positive and
negative parts are summed apart with their weights. Statistics are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from excise.common.weights import Weights, is_statistic
from excise.server.composition.composer import Composer, Update
from excise.server.composition.exact import ExactSum


class Ties(Composer):
    """Streaming TIES merge."""

    def __init__(self, base: Mapping[str, Tensor], density: float = 0.2, scale: float = 1.0) -> None:
        """`density` in (0, 1] is the share of parameters that a site keeps; `scale` in (0, 10] multiplies the merge."""
        if not 0 < density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {density}")
        if not 0 < scale <= 10:
            raise ValueError(f"scale must lie in (0, 10], got {scale}")
        super().__init__(base)
        self._density, self._scale = density, scale
        parameters = {name: x for name, x in base.items() if not is_statistic(name)}
        self._sums = {sign: ExactSum(parameters) for sign in (1, -1)}
        self._weights = {sign: ExactSum(parameters) for sign in (1, -1)}
        self._statistics = ExactSum({name: x for name, x in base.items() if is_statistic(name)})

    def _take(self, update: Update) -> None:
        kept = trimmed({name: update.delta[name] for name in self._sums[1].total}, self._density)
        for sign in (1, -1):
            self._sums[sign].add({name: (sign * x).clamp_min(0) for name, x in kept.items()}, update.weight)
            self._weights[sign].add({name: (sign * x > 0).double() for name, x in kept.items()}, update.weight)
        self._statistics.add(update.delta, update.weight)

    def _delta(self) -> Weights:
        merged = dict(self._statistics.mean())
        for name, up in self._sums[1].total.items():
            down = self._sums[-1].total[name]
            # A sum without weight is 0, and so is its share.
            means = [s.total[name] / w.total[name].clamp_min(1e-300) for s, w in self._pairs()]
            merged[name] = self._scale * torch.where(up > down, means[0], torch.where(down > up, -means[1], 0.0))
        return merged

    def _pairs(self) -> list[tuple[ExactSum, ExactSum]]:
        return [(self._sums[sign], self._weights[sign]) for sign in (1, -1)]


def trimmed(delta: Mapping[str, Tensor], density: float) -> Weights:
    """`delta` with all but the `density` largest magnitudes of all its tensors together set to 0; at least one is kept."""
    magnitudes = torch.cat([x.abs().flatten().float() for x in delta.values()])
    keep = max(1, math.ceil(density * len(magnitudes)))
    if keep >= len(magnitudes):
        return dict(delta)
    least = magnitudes.kthvalue(len(magnitudes) - keep + 1).values
    return {name: torch.where(x.abs().float() >= least, x, torch.zeros_like(x)) for name, x in delta.items()}
