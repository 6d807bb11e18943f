"""Module swap: the backbone of those that remember well, the head of those that forget well (Nahass et al., arXiv 2505.21872).

    backbone ← θ_in + mean of the retain-only sites' updates;     head ← θ_in + mean of the forget-holding sites' updates

Two halves that were not trained together need to be brought together: the rule asks for retain-only recovery rounds after the
last round of unlearning. (They bring memorised samples back, docs/method.md; for classes they do not.) A role that no site had
in a round is taken from the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from excise.common.weights import Weights
from excise.server.composition.composer import Composer, Update
from excise.server.composition.exact import ExactSum

HEAD = "head."
"""Prefix of the head's tensors in every model of `common/models/`."""


class ModuleSwap(Composer):
    """Streaming: one sum a module."""

    def __init__(self, base: Mapping[str, Tensor], recovery_rounds: float = 1) -> None:
        """`recovery_rounds`, a whole number from 0 to 100, are asked of the coordinator after the last unlearning round.

        Raises
        ------
        ValueError : the model has no head to swap
        """
        if recovery_rounds != int(recovery_rounds) or not 0 <= recovery_rounds <= 100:
            raise ValueError(f"recovery_rounds must be a whole number from 0 to 100, got {recovery_rounds}")
        if not any(name.startswith(HEAD) for name in base):
            raise ValueError("the model has no tensors named 'head.…': module_swap needs a backbone and a head")
        super().__init__(base)
        self.recovery_rounds = int(recovery_rounds)
        self._sums = {True: ExactSum(base), False: ExactSum(base)}

    def _take(self, update: Update) -> None:
        self._sums[update.forgets].add(update.delta, update.weight)

    def _delta(self) -> Weights:
        forget, retain = (self._sums[role if self._sums[role].weight else not role].mean() for role in (True, False))
        return swapped(backbone=retain, head=forget)


def swapped(backbone: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> Weights:
    """The tensors of `backbone`, but those of the head, which come from `head`."""
    return {name: (head if name.startswith(HEAD) else backbone)[name] for name in backbone}
