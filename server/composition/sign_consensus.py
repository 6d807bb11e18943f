"""Sign consensus: a coordinate forgets only where the forget-holding sites agree on its direction.

    c     = | Σ_{k∈F} sign(Δ_k) | ≥ (2·agreement − 1)·|F|                coordinate by coordinate; F: forget-holding sites
    θ     ← θ_in + ( c ⊙ Σ_{k∈F} p_k·Δ_k  +  Σ_{k∉F} p_k·Δ_k ) / Σ_k p_k

Where sites with different forget images pull apart, the direction is an accident of one site's images and is left alone. With
one forget-holding site this is the mean. Statistics are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from excise.common.weights import Weights, is_statistic
from excise.server.composition.composer import Composer, Update
from excise.server.composition.exact import ExactSum


class SignConsensus(Composer):
    """Streaming: two sums by role, and one of signs."""

    def __init__(self, base: Mapping[str, Tensor], agreement: float = 1.0) -> None:
        """`agreement` in [0.5, 1] is the share of forget-holding sites that must agree; 1 asks for all of them."""
        if not 0.5 <= agreement <= 1:
            raise ValueError(f"agreement must lie in [0.5, 1], got {agreement}")
        super().__init__(base)
        self._agreement = agreement
        self._sums = {True: ExactSum(base), False: ExactSum(base)}
        self._signs = ExactSum({name: x for name, x in base.items() if not is_statistic(name)})
        self._forgetting = 0

    def _take(self, update: Update) -> None:
        self._sums[update.forgets].add(update.delta, update.weight)
        if update.forgets:
            self._signs.add({name: update.delta[name].sign() for name in self._signs.total})
            self._forgetting += 1

    def _delta(self) -> Weights:
        weight = self._sums[True].weight + self._sums[False].weight
        needed = (2 * self._agreement - 1) * self._forgetting - 1e-9  # 0.8 of 5 sites is 4 of them, whatever floats say
        composed: Weights = {}
        for name, retain in self._sums[False].total.items():
            forget = self._sums[True].total[name]
            if name in self._signs.total:
                forget = forget * (self._signs.total[name].abs() >= needed)
            composed[name] = (forget + retain) / weight
        return composed
