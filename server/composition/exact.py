"""A weighted sum of updates that does not depend on their order.

Sites answer in any order, and sums of floats depend on it. Here every term is first rounded to a multiple of 2⁻⁴⁰ (1e-12, far
below what float32 weights resolve); such numbers up to 2¹² add exactly in float64, so the order cannot show
(docs/adr/0004-order-of-replies.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from excise.common.weights import Weights, floating

CHUNK = 1 << 20
"""Numbers that are rounded at once: bounds the memory beside the sum itself."""


class ExactSum:
    """Σ_k w_k·x_k over the floating-point tensors of `like`, in float64: the memory of two float32 models.

    Attributes
    ----------
    total : the sum so far, by name
    weight : Σ_k w_k
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.total: Weights = {name: torch.zeros(x.shape, dtype=torch.float64) for name, x in floating(like).items()}
        self.weight = 0.0

    def add(self, x: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add `weight` times `x`; tensors of `x` that the sum does not name are left out."""
        for name, total in self.total.items():
            sums, terms = total.view(-1), x[name].reshape(-1)
            for start in range(0, len(sums), CHUNK):
                part = slice(start, start + CHUNK)
                sums[part] += _on_grid(terms[part].double() * weight)
        self.weight += float(_on_grid(torch.tensor(weight, dtype=torch.float64)))

    def mean(self) -> Weights:
        """Σ_k w_k·x_k / Σ_k w_k, in float64; all zero when nothing was added."""
        return {name: total / self.weight if self.weight else total for name, total in self.total.items()}


def _on_grid(x: Tensor) -> Tensor:
    """Round a temporary to a multiple of 2⁻⁴⁰, in place."""
    return x.mul_(2.0**40).round_().div_(2.0**40)
