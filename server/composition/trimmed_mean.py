"""Coordinate-wise trimmed mean within each role (Yin et al., "Byzantine-robust distributed learning", ICML 2018).

Of a role's K values of a coordinate the ⌊trim·K⌋ smallest and as many largest are dropped, and the rest averaged. A role of
fewer than 1/trim sites (five by default) loses nothing, so nothing protects it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from excise.common.weights import Weights
from excise.server.composition.composer import Update
from excise.server.composition.roles import RobustRule, stacked


class TrimmedMean(RobustRule):
    """Mean of the middle values of each coordinate."""

    def __init__(self, base: Mapping[str, Tensor], trim: float = 0.2) -> None:
        """`trim` in [0, 0.5) is the share dropped at either end."""
        if not 0 <= trim < 0.5:
            raise ValueError(f"trim must lie in [0, 0.5), got {trim}")
        super().__init__(base)
        self._trim = trim

    def centre(self, updates: Sequence[Update]) -> Weights:
        k = len(updates)
        cut = int(self._trim * k + 1e-9)  # 0.29 of 100 is 29, whatever floats say
        return {name: stacked(updates, name).sort(0).values[cut : k - cut].mean(0) for name in updates[0].delta}
