"""Bytes that would travel between the server and each site: weights and updates, and smaller things that a method sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from excise.common.weights import floating


class Traffic:
    """What each site was sent and sent so far. How a message is wrapped is not in it, nor single numbers such as a weight.

    Attributes
    ----------
    down, up : bytes to and from each site that was asked, by its name
    """

    def __init__(self) -> None:
        self.down: Counter[str] = Counter()
        self.up: Counter[str] = Counter()

    def add(self, site: str, *, down: int = 0, up: int = 0) -> None:
        """Count what a site is sent, and what it answers, in bytes."""
        self.down[site] += down
        self.up[site] += up


def size_of(weights: Mapping[str, Tensor]) -> int:
    """Bytes of what travels of weights or of an update: parameters and statistics; integer buffers stay where they are."""
    return sum(value.nbytes for value in floating(weights).values())
