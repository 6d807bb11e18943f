"""The contract of a composition rule: updates of one round in, revised weights out.

A rule sees each update once, with its weight p_k and its *role*: a site either holds forget images in this round, or retain
images only. Parameters and batch-norm statistics are composed; integer buffers stay as in the base. A rule moves parameters as
it sees fit, and *statistics* always by a mean or a robust centre: a sum or a sign of running variances means nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from excise.common.weights import Weights, moved


@dataclass(frozen=True)
class Update:
    """What one site returned.

    Attributes
    ----------
    site : its name; breaks ties, so that the order of arrival cannot
    delta : Δ_k = θ_k − θ_in, over the floating-point tensors of the base
    weight : p_k, positive and finite
    forgets : its role: whether it held forget images in this round
    """

    site: str
    delta: Mapping[str, Tensor]
    weight: float
    forgets: bool


class Composer(ABC):
    """Takes the updates of one round, one at a time, and gives the revised weights.

    Updates come in the order in which sites answer, and the result must not depend on it, to the last bit.
    """

    streaming: ClassVar[bool] = True
    """Whether memory is the same whatever the number of sites; a rule that is not streaming keeps every update."""

    recovery_rounds: int = 0
    """Retain-only rounds that the rule wants after the last round of unlearning."""

    def __init__(self, base: Mapping[str, Tensor]) -> None:
        self.base = base
        self._taken = 0

    def add(self, update: Update) -> None:
        """Take one update.

        Raises
        ------
        ValueError : its weight is not positive and finite
        """
        if not 2.0**-40 <= update.weight < float("inf"):  # less would round to nothing in `ExactSum`
            raise ValueError(f"an update's weight must be positive and finite, got {update.weight}")
        self._take(update)
        self._taken += 1

    def result(self) -> Weights:
        """The revised weights.

        Raises
        ------
        ValueError : no update was added
        """
        if self._taken == 0:
            raise ValueError("no update was added")
        revised = moved(self.base, self._delta())
        for name, tensor in revised.items():
            if name.endswith("running_var"):
                tensor.clamp_min_(0.0)  # rounding in `ExactSum` may push a variance of next to nothing below it
        return revised

    @abstractmethod
    def _take(self, update: Update) -> None:
        """Fold one update in."""

    @abstractmethod
    def _delta(self) -> Mapping[str, Tensor]:
        """What to add to the base."""
