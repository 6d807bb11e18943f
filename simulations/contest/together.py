"""A model that sites trained together, with all that it took, and every site's updates: some methods need what was stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from excise.common.settings import TrainingSettings
from excise.common.weights import Weights
from excise.simulations.baselines.federated.averaging import average
from excise.simulations.baselines.method import Images
from excise.simulations.contest.resources import used
from excise.simulations.judging.cost import Cost

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Together:
    """A model that sites trained together.

    Attributes
    ----------
    model : after the last round, in evaluation mode
    updates : each site's update of each round, by its name; of no round where nobody wanted them stored
    cost : what training took; memory with the updates that were stored
    """

    model: nn.Module
    updates: Sequence[Mapping[str, Weights]]
    cost: Cost


def train_together(
    initial: nn.Module,
    sites: Mapping[str, Images],
    settings: TrainingSettings,
    seed: int,
    progress: Progress,
    stored: bool = True,
) -> Together:
    """As `average`, whose parameters these are, with what it took."""
    took = used(lambda: average(initial, sites, settings, seed, stored, progress))
    made = took.made
    cost = Cost(
        images=made.passes,
        seconds=took.seconds,
        rounds=settings.rounds,
        bytes_up=dict(made.traffic.up),
        bytes_down=dict(made.traffic.down),
        peak_bytes=took.peak_bytes,
    )
    return Together(made.model, made.updates, cost)
