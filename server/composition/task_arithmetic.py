"""Task arithmetic:  θ ← θ_in + s·Σ_k p_k·Δ_k / Σ_k p_k.

An update is a *task vector*; a scale s above 1 goes further in its direction than the sites did, below 1 less far (Ilharco et
al., "Editing models with task arithmetic", ICLR 2023). Statistics are not extrapolated: a variance could become negative.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from excise.common.weights import is_statistic
from excise.server.composition.mean import Mean


class TaskArithmetic(Mean):
    """The mean, scaled."""

    def __init__(self, base: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """`scale`, s, is in (0, 10]."""
        if not 0 < scale <= 10:
            raise ValueError(f"scale must lie in (0, 10], got {scale}")
        super().__init__(base)
        self._scale = scale

    def _delta(self) -> Mapping[str, Tensor]:
        return {name: x if is_statistic(name) else self._scale * x for name, x in super()._delta().items()}
