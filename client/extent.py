"""How long a round may take here, and how much it learns from.

Whatever a round does sends images through a model, so every pass looks at the clock. Steps and images are counted before a
round begins, from what was asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

from excise.client.permission import Forbidden
from excise.client.policy import LimitSettings
from excise.common.errors import ExciseError, MessageError, SiteError

MOST = 0.95
"""Largest weight of a term that draws on fewer than `min_count` images; what is left is of others, enough of them."""
_until: ContextVar[float] = ContextVar("until", default=math.inf)


class OutOfTime(ExciseError):
    """A round took longer than the site allows, and was given up."""

    code = SiteError.OUT_OF_TIME


@contextmanager
def limited_to(seconds: float) -> Iterator[None]:
    """Let models that are watched run for so long within the block, from now on."""
    token = _until.set(time.perf_counter() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def watch(model: nn.Module) -> None:
    """Let `model` raise `OutOfTime` before a forward pass once its time is over."""
    model.register_forward_pre_hook(_look)


def _look(*_: object) -> None:
    if time.perf_counter() > _until.get():
        raise OutOfTime("the round took longer than limits.seconds in site.toml allows")


def check_steps(steps: int, limits: LimitSettings) -> None:
    """Refuse a round of too many gradient steps, however they were asked for.

    Raises
    ------
    Forbidden : they are more than `limits.steps`
    """
    if steps > limits.steps:
        raise Forbidden(SiteError.FORBIDDEN, f"{steps:,} gradient steps in a round; limits.steps allows {limits.steps:,}")


def check_images(terms: Sequence[tuple[float, int]], min_count: int) -> None:
    """Refuse an update that would come from few images: they could be read off it (Zhu et al., 2019).

    Parameters
    ----------
    terms : of each term of the objective its weight, in [0, 1], and the different images that it draws on

    Raises
    ------
    Forbidden : they are fewer than `min_count` in all; or a term that draws on fewer is not mixed with enough of another
    MessageError : a weight is none
    """
    if not all(0 <= weight <= 1 for weight, _ in terms):
        raise MessageError(f"weights of the objective should lie in [0, 1], got {[weight for weight, _ in terms]}")
    terms = [(weight, images) for weight, images in terms if weight > 0]
    enough = sum(weight for weight, images in terms if images >= min_count)
    if sum(images for _, images in terms) < min_count or any(
        images < min_count and max(weight, 1 - enough) > MOST + 1e-9 for weight, images in terms
    ):
        told = " and ".join(f"{images} images of weight {weight:.3g}" for weight, images in terms)
        raise Forbidden(
            SiteError.FORBIDDEN,
            f"an update would come from {told}; policy.min_count = {min_count}, and fewer only beside so many others",
        )
