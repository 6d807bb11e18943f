"""How long a round may take here. Whatever a round does sends images through a model, so every pass looks at the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

from excise.common.errors import ExciseError, SiteError

_ends: ContextVar[float] = ContextVar("ends", default=math.inf)


class OutOfTime(ExciseError):
    """A round took longer than the site allows, and was given up."""

    code = SiteError.OUT_OF_TIME


@contextmanager
def limited_to(seconds: float) -> Iterator[None]:
    """Let models that watch the clock run for so long, from now on, within the block."""
    token = _ends.set(time.perf_counter() + seconds)
    try:
        yield
    finally:
        _ends.reset(token)


def watch(model: nn.Module) -> None:
    """Let `model` raise `OutOfTime` before a forward pass once the time is over."""
    model.register_forward_pre_hook(_look)


def _look(*_: object) -> None:
    if time.perf_counter() > _ends.get():
        raise OutOfTime("the round took longer than limits.seconds in site.toml allows")
