"""Plain federated averaging in one process: how the deployed model of a task was trained, and how it is retrained."""

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


@dataclass(frozen=True)
class Averaged:
    """A model that sites trained together.

    Attributes
    ----------
    model : after the last round, in evaluation mode
    passes : images sent through it, at all sites
    updates : each site's update of each round, by its name; of no round where nobody wanted them stored
    traffic : bytes to and from each site
    """

    model: nn.Module
    passes: int
    updates: Sequence[Mapping[str, Weights]]
    traffic: Traffic


def average(
    initial: nn.Module,
    sites: Mapping[str, Images],
    settings: TrainingSettings,
    seed: int,
    stored: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Averaged:
    """Train a copy of `initial` by federated averaging, sites weighed by their images (McMahan et al., AISTATS 2017).

    Parameters
    ----------
    sites : training images of each site; one without any is never asked
    seed : of the orders in which sites take their images, and of their augmentation
    stored : whether the updates of the rounds are kept
    """
    asked = {name: images for name, images in sites.items() if len(images[1])}
    total = sum(len(y_N) for _, y_N in asked.values())
    model, passes, traffic = copy.deepcopy(initial), 0, Traffic()
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
    return Averaged(model.eval(), passes, rounds, traffic)
