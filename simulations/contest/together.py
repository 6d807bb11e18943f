"""Plain federated averaging in one process, with every site's update of every round: some methods need what was stored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Generator, nn

from excise.client.training import train_locally
from excise.common.settings import TrainingSettings
from excise.common.weights import Weights, difference, moved, snapshot
from excise.simulations.baselines.federated.traffic import Traffic, size_of
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
    """Train a copy of `initial` by federated averaging, sites weighed by their images (McMahan et al., AISTATS 2017).

    Parameters
    ----------
    sites : training images of each site; one without any is never asked
    stored : whether the updates of the rounds are kept
    """
    traffic = Traffic()
    took = used(lambda: _trained(initial, sites, settings, seed, progress, stored, traffic))
    made, passes, rounds = took.made
    cost = Cost(
        images=passes,
        seconds=took.seconds,
        rounds=settings.rounds,
        bytes_up=dict(traffic.up),
        bytes_down=dict(traffic.down),
        peak_bytes=took.peak_bytes,
    )
    return Together(made, rounds, cost)


def _trained(
    initial: nn.Module,
    sites: Mapping[str, Images],
    settings: TrainingSettings,
    seed: int,
    progress: Progress,
    stored: bool,
    traffic: Traffic,
) -> tuple[nn.Module, int, list[Mapping[str, Weights]]]:
    """The model, images sent through it, and the stored updates."""
    asked = {name: images for name, images in sites.items() if len(images[1])}
    total = sum(len(y_N) for _, y_N in asked.values())
    model, passes = copy.deepcopy(initial), 0
    rounds = list[Mapping[str, Weights]]()
    for number in range(settings.rounds):
        progress(f"round {number + 1} of {settings.rounds}")
        before, updates = snapshot(model), dict[str, Weights]()
        for place, (name, images) in enumerate(asked.items()):
            model.load_state_dict(before)
            generator = Generator().manual_seed(1_000_000 * seed + 1000 * number + place)
            passes += train_locally(model, *images, settings, number, generator)[1]
            updates[name] = difference(snapshot(model), before)
            traffic.add(name, down=size_of(before), up=size_of(updates[name]))
        mean = {key: sum(len(asked[name][1]) / total * updates[name][key] for name in asked) for key in updates[name]}
        model.load_state_dict(moved(before, mean))  # type: ignore[arg-type]
        if stored:
            rounds.append(updates)
    return model.eval(), passes, rounds
