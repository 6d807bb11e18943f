"""Multi-Krum within each role: the mean of the updates that lie closest to their neighbours.

    score(k) = Σ of the K − f − 2 smallest ‖Δ_k − Δ_j‖²;     centre = mean of the m sites of least score

(Blanchard et al., "Machine learning with adversaries", NeurIPS 2017.) f faulty sites are tolerated where K > 2f + 2. In a
smaller role as many are as K allows; where that is none, every update is averaged. Distances are taken over the parameters;
statistics come from the chosen sites too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from excise.common.weights import Weights, is_statistic
from excise.server.composition.composer import Update
from excise.server.composition.roles import RobustRule, stacked


class MultiKrum(RobustRule):
    """Mean of the updates that agree with most others."""

    def __init__(self, base: Mapping[str, Tensor], faulty: float = 1, keep: float = 0) -> None:
        """`faulty`, f, is the number of faulty sites in a role; `keep`, m, that of updates averaged, or 0 for K − f.

        Both are whole numbers from 0; `keep` = 1 is Krum.
        """
        for name, value in (("faulty", faulty), ("keep", keep)):
            if value != int(value) or value < 0:
                raise ValueError(f"{name} must be a whole number from 0, got {value}")
        super().__init__(base)
        self._faulty, self._keep = int(faulty), int(keep)

    def centre(self, updates: Sequence[Update]) -> Weights:
        k = len(updates)
        faulty = min(self._faulty, max(0, (k - 3) // 2))
        chosen = updates
        if faulty or self._keep:
            scores = krum_scores(updates, faulty)
            best = sorted(range(k), key=lambda i: (scores[i], updates[i].site))
            chosen = [updates[i] for i in sorted(best[: min(self._keep or k - faulty, k)])]
        return {name: stacked(chosen, name).mean(0) for name in updates[0].delta}


def krum_scores(updates: Sequence[Update], faulty: int) -> list[float]:
    """Krum's score of each update: the sum of its squared distances to its K − f − 2 nearest (at least one), float64."""
    flat_KD = torch.stack(
        [torch.cat([x.double().flatten() for n, x in sorted(u.delta.items()) if not is_statistic(n)]) for u in updates]
    )
    k = len(updates)
    nearest = max(1, k - faulty - 2)
    # Row by row: the differences of all pairs at once would take K² models.
    scores = []
    for i in range(k):
        distance_K = (flat_KD - flat_KD[i]).pow(2).sum(1)
        others_K = torch.cat([distance_K[:i], distance_K[i + 1 :]]).sort().values
        scores.append(float(others_K[:nearest].sum()))
    return scores
