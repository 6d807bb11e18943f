"""How much a round may take here, by `limits` in site.toml: seconds, and gradient steps.

Whatever a round does sends images through a model, so every pass looks at the clock, and every pass in training counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn

from excise.client.policy import LimitSettings
from excise.common.errors import ExciseError, SiteError


class LimitReached(ExciseError):
    """A round took more than the site allows, and was given up. The code is all that the coordinator is told."""

    def __init__(self, code: SiteError, message: str) -> None:
        super().__init__(f"{message} in site.toml allows")
        self.code = code


@dataclass
class _Left:
    """What is left of a round: the end of its time, `time.perf_counter` seconds, and its steps."""

    until: float = math.inf
    steps: float = math.inf


_left: ContextVar[_Left] = ContextVar("left", default=_Left())  # noqa: B039 - nothing counts down from without a limit


@contextmanager
def limited_to(limits: LimitSettings) -> Iterator[None]:
    """Let models that are watched run for so long and so many steps within the block, from now on."""
    token = _left.set(_Left(time.perf_counter() + limits.seconds, limits.steps))
    try:
        yield
    finally:
        _left.reset(token)


def watch(model: nn.Module) -> None:
    """Let `model` raise `LimitReached` before a forward pass once its time is over or its steps are done."""
    model.register_forward_pre_hook(_look)


def _look(model: nn.Module, *_: object) -> None:
    left = _left.get()
    if time.perf_counter() > left.until:
        raise LimitReached(SiteError.OUT_OF_TIME, "the round took longer than limits.seconds")
    if model.training and torch.is_grad_enabled():
        left.steps -= 1
        if left.steps < 0:
            raise LimitReached(SiteError.FORBIDDEN, "the round takes more gradient steps than limits.steps")
