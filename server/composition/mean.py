"""Weighted mean of the updates:  θ ← θ_in + Σ_k p_k·Δ_k / Σ_k p_k.

With the weights p_k of `server/weighting.py` this is federated averaging on the unlearning objective F. Dividing by the sum
of the weights that came keeps it a mean when a site is missing. Streaming: one sum, whatever the number of sites.

Sites answer in any order, and sums of floats depend on it. Here every term is first rounded to a multiple of 2⁻⁴⁰ (1e-12, far
below what float32 weights resolve); such numbers up to 2¹² add exactly in float64, so the order cannot show.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from excise.common.weights import Weights, floating, moved


class Mean:
    """Streaming weighted mean."""

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        self._base = base
        self._sum = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in floating(base).items()}
        self._weight = 0.0

    def add(self, delta: Mapping[str, Tensor], weight: float) -> None:
        if not 2.0**-40 <= weight < float("inf"):  # less would round to nothing
            raise ValueError(f"an update's weight must be positive and finite, got {weight}")
        for name, total in self._sum.items():
            total.add_(_on_grid(delta[name].double() * weight))
        self._weight += float(_on_grid(torch.tensor(weight, dtype=torch.float64)))

    def result(self) -> Weights:
        if self._weight == 0:
            raise ValueError("no update was added")
        return moved(self._base, {name: total / self._weight for name, total in self._sum.items()})


def _on_grid(x: Tensor) -> Tensor:
    return torch.round(x * 2.0**40) / 2.0**40
