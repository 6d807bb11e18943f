"""What a site sends back of a round that changed its model."""

from __future__ import annotations

import math
import time

from torch import nn

from excise.client.rounds.model import SiteFailure
from excise.common.errors import SiteError
from excise.common.messages import SiteUpdate
from excise.common.weights import Weights, difference, digest, snapshot


def make_update(weights_in: Weights, model: nn.Module, passes: int, began: float, metrics: dict[str, float]) -> SiteUpdate:
    """The change that the round made to `weights_in`, and what it measured, without what is not finite.

    Parameters
    ----------
    passes : images sent through a model
    began : when the round began, `time.perf_counter` seconds

    Raises
    ------
    SiteFailure : a weight is not finite
    """
    delta = difference(snapshot(model), weights_in)
    if not all(bool(tensor.isfinite().all()) for tensor in delta.values()):
        raise SiteFailure(SiteError.DIVERGED, "training diverged: the update is not finite; use a smaller step size")
    return SiteUpdate(
        weights_in=digest(weights_in),
        delta=delta,
        passes=passes,
        seconds=time.perf_counter() - began,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
    )
