"""The composition rules by name, with their options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor

from excise.common.errors import ConfigError, did_you_mean
from excise.common.settings import CompositionSettings
from excise.server.composition.composer import Composer
from excise.server.composition.dare import Dare
from excise.server.composition.mean import Mean
from excise.server.composition.median import Median
from excise.server.composition.module_swap import ModuleSwap
from excise.server.composition.multi_krum import MultiKrum
from excise.server.composition.orthogonal import Orthogonal
from excise.server.composition.sign_consensus import SignConsensus
from excise.server.composition.task_arithmetic import TaskArithmetic
from excise.server.composition.ties import Ties
from excise.server.composition.trimmed_mean import TrimmedMean

_RULES: dict[str, type[Composer]] = {
    "mean": Mean,
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare": Dare,
    "sign_consensus": SignConsensus,
    "orthogonal": Orthogonal,
    "module_swap": ModuleSwap,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "multi_krum": MultiKrum,
}


_ANY_MODEL = {"head.bias": torch.zeros(1)}
"""The smallest model that every rule accepts, to look at a rule before there is one."""


def known_rules() -> tuple[str, ...]:
    """Names that `new_composer` accepts."""
    return tuple(sorted(_RULES))


def rule_options(rule: str) -> dict[str, float]:
    """The options of a rule, with their defaults.

    Raises
    ------
    ConfigError : the rule is unknown
    """
    if rule not in _RULES:
        raise ConfigError(f"unknown composition '{rule}': {did_you_mean(rule, _RULES)}")
    parameters = list(inspect.signature(_RULES[rule]).parameters.values())[1:]  # without the base
    return {parameter.name: float(parameter.default) for parameter in parameters}


def recovery_rounds(settings: CompositionSettings) -> int:
    """Retain-only rounds that the rule wants after unlearning.

    Raises
    ------
    ConfigError : as `new_composer`
    """
    return new_composer(settings, _ANY_MODEL).recovery_rounds


def new_composer(settings: CompositionSettings, base: Mapping[str, Tensor]) -> Composer:
    """Start composing updates of `base` by the rule that `settings` names.

    Raises
    ------
    ConfigError : the rule is unknown, or has no such option, or an option is out of its range
    """
    known = rule_options(settings.rule)
    for option in settings.options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "it has none"
            raise ConfigError(f"composition '{settings.rule}' has no option '{option}': {hint}")
    try:
        return _RULES[settings.rule](base, **settings.options)
    except ValueError as error:
        raise ConfigError(f"composition '{settings.rule}': {error}") from None
