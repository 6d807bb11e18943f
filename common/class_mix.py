"""What classes the forget images and the retain images are of, and what follows where the two differ.

*Label shift* (Saerens et al., 2002). How probable a model finds a class is in proportion to how often it met it in training.
Retrained without half the images of one class, a model says that class less often, also of images that have nothing to do
with the forgotten ones. The losses of the deployed model on unseen images do not show it. They do once the odds of each class
are multiplied by how much rarer it becomes.

*Batch statistics.* A batch of mostly one class has the mean and variance of that class, not of the images that a model meets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ClassMix:
    """How many forget and retain images there are of each stratum (`client/unlearning/labels.py`).

    Attributes
    ----------
    forget, retain : images by stratum; a stratum of which nothing is known is left out
    multi_label : whether strata are the two sides of each label, rather than classes
    """

    forget: Mapping[int, float]
    retain: Mapping[int, float]
    multi_label: bool = False

    def log_odds_shift(self, stratum: int) -> float:
        """By how much the log odds of `stratum` change when a model is trained on the retain images alone; 0 when unknown.

        Exact where the other classes keep their proportions among each other, and of labels always. One image is added to each
        count: of a class whose n images are all forgotten, 1/(n + 1) is left.
        """
        others = [s for s in self.known if s != stratum and (not self.multi_label or s // 2 == stratum // 2)]
        if stratum not in self.known or not others or not any(self.retain.get(s) for s in (stratum, *others)):
            return 0.0
        return math.log(self._kept(stratum) / self._kept(*others))

    def distance(self) -> float:
        """Total variation distance between the classes of forget and of retain images, in [0, 1]; of labels the largest."""
        if not self.multi_label:
            return self._distance(self.known)
        labels = {s // 2 for s in self.known}
        return max((self._distance([2 * label, 2 * label + 1]) for label in labels), default=0.0)

    @property
    def known(self) -> list[int]:
        """Strata of which any image is known."""
        return sorted({*self.forget, *self.retain})

    def _kept(self, *strata: int) -> float:
        retain = sum(self.retain.get(s, 0) for s in strata)
        return (retain + 1) / (retain + sum(self.forget.get(s, 0) for s in strata) + 1)

    def _distance(self, strata: list[int]) -> float:
        f, r = ([of.get(s, 0) for s in strata] for of in (self.forget, self.retain))
        if not sum(f) or not sum(r):
            return 0.0
        return sum(abs(a / sum(f) - b / sum(r)) for a, b in zip(f, r, strict=True)) / 2


def shifted_losses(losses: Tensor, shift: float) -> Tensor:
    """Cross-entropies after the log odds of the true class have changed by `shift`; of any shape, float, at least 0."""
    # log((1 − p)/p) of p = exp(−loss), without overflow where the loss is large.
    against = losses + torch.log(-torch.expm1(-losses))
    return F.softplus(against - shift)
