"""Orthogonal composition: the forget update loses its component along the retain update.

    u_F, u_R = weighted means of the updates of each role;     u_F ← u_F − (⟨u_F, u_R⟩ / ‖u_R‖²)·u_R
    θ        ← θ_in + ( P_F·u_F + P_R·u_R ) / ( P_F + P_R ),   P = Σ p_k of the role

So forgetting neither undoes nor repeats what the retain-only sites do. The product runs over all parameters together;
statistics are averaged. With one role this is the mean.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from excise.common.weights import Weights, is_statistic
from excise.server.composition.composer import Composer, Update
from excise.server.composition.exact import ExactSum


class Orthogonal(Composer):
    """Streaming: one sum a role."""

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        super().__init__(base)
        self._sums = {True: ExactSum(base), False: ExactSum(base)}

    def _take(self, update: Update) -> None:
        self._sums[update.forgets].add(update.delta, update.weight)

    def _delta(self) -> Weights:
        forget, retain = self._sums[True].mean(), self._sums[False].mean()
        share = self._sums[True].weight / (self._sums[True].weight + self._sums[False].weight)
        length = _dot(retain, retain)
        along = _dot(forget, retain) / length if length > 0 else 0.0
        return {
            name: share * (forget[name] - (0.0 if is_statistic(name) else along) * x) + (1 - share) * x
            for name, x in retain.items()
        }


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """⟨a, b⟩ over the parameters."""
    return sum(float((x * b[name]).sum()) for name, x in sorted(a.items()) if not is_statistic(name))
