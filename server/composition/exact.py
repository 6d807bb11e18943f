"""A weighted sum of updates that does not depend on their order.

Sites answer in any order, and sums of floats depend on it. Here every term is first rounded to a multiple of 2⁻⁴⁰ (1e-12, far
below what float32 weights resolve); such numbers up to 2¹² add exactly in float64, so the order cannot show
(docs/adr/0004-order-of-replies.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from excise.common.weights import floating

CHUNK = 1 << 20
"""Numbers that are rounded at once: bounds the memory beside the sum itself."""

UNIT = 2.0**-40
"""What everything is rounded to a multiple of; the sums are kept as whole numbers of it."""


class ExactSum:
    """Σ_k w_k·x_k over the floating-point tensors of `like`: the memory of two float32 models.

    Attributes
    ----------
    total : the sum so far, float64, by name; each tensor is made when it is looked up
    weight : Σ_k w_k
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._units = {name: torch.zeros(x.shape, dtype=torch.float64) for name, x in floating(like).items()}
        self.total: Mapping[str, Tensor] = _Lazily(self._units, lambda units: units * UNIT)
        self.weight = 0.0

    def add(self, x: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add `weight` times `x`; tensors of `x` that the sum does not name are left out."""
        scale = weight / UNIT  # exact: a power of two
        for name, units in self._units.items():
            sums, terms = units.view(-1), x[name].reshape(-1)
            for start in range(0, len(sums), CHUNK):
                part = slice(start, start + CHUNK)
                sums[part] += terms[part].to(torch.float64, copy=True).mul_(scale).round_()
        self.weight += round(scale) * UNIT

    def mean(self) -> Mapping[str, Tensor]:
        """Σ_k w_k·x_k / Σ_k w_k, float64, each tensor made when it is looked up; all zero when nothing was added."""
        if not self.weight:
            return self.total
        whole = self.weight / UNIT  # exact, so that one division, and one temporary, does for both factors
        return _Lazily(self._units, lambda units: units / whole)


class _Lazily(Mapping[str, Tensor]):
    """Tensors that are computed when they are looked up, so that they need not all be there at once."""

    def __init__(self, tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> None:
        self._tensors, self._change = tensors, change

    def __getitem__(self, name: str) -> Tensor:
        return self._change(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
