"""The contract of a composition rule, and the rules by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from excise.common.errors import ConfigError, did_you_mean
from excise.common.weights import Weights
from excise.server.composition.mean import Mean


class Composer(Protocol):
    """Takes the updates of one round, one at a time, and gives the revised weights.

    Updates come in the order in which sites answer, and the result must not depend on it. Parameters and batch-norm statistics
    are both composed; integer buffers stay as in `base`.
    """

    def add(self, delta: Mapping[str, Tensor], weight: float) -> None:
        """Take one update Δ_k with its weight p_k > 0."""

    def result(self) -> Weights:
        """The revised weights. Raises ValueError when no update was added."""


_RULES: dict[str, Callable[[Mapping[str, Tensor]], Composer]] = {"mean": Mean}


def known_rules() -> tuple[str, ...]:
    """Names that `new_composer` accepts."""
    return tuple(sorted(_RULES))


def new_composer(rule: str, base: Mapping[str, Tensor]) -> Composer:
    """Start composing updates of `base` by the rule of that name.

    Raises
    ------
    ConfigError : the rule is unknown
    """
    if rule not in _RULES:
        raise ConfigError(f"unknown composition '{rule}': {did_you_mean(rule, _RULES)}")
    return _RULES[rule](base)
