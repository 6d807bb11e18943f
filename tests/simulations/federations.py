"""A federation of three tiny sites that trained a model together, with the history of its rounds."""

from __future__ import annotations

import torch

from excise.common.settings import TrainingSettings
from excise.common.weights import Weights, snapshot
from excise.simulations.baselines.federated.problem import FederatedProblem, Part, Updates
from excise.simulations.baselines.federated.rounds import Federation
from excise.simulations.baselines.method import Images
from tests.simulations.tiny import new_net, none_of, of, pictures

ROUNDS = 6
SITES = ("a", "b", "c")


def joined(one: Images, other: Images) -> Images:
    return torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])


def federation() -> tuple[FederatedProblem, list[Weights]]:
    """Class 0 lies at site a alone and is to be forgotten, and the global models before the rounds of training."""
    train, unseen = pictures(60, 0), pictures(15, 1)
    parts = {}
    for number, name in enumerate(SITES):
        mine = of(train, torch.arange(len(train[1])) // 3 % 3 == number)  # a third of each class
        known = of(unseen, torch.arange(len(unseen[1])) // 3 % 3 == number)
        gone = of(train, train[1] == 0) if number == 0 else none_of(train)
        parts[name] = Part(gone, of(mine, mine[1] != 0), known)
    everything = {name: Part(none_of(train), joined(part.forget, part.retain), part.unseen) for name, part in parts.items()}
    initial = new_net()
    training = Federation(FederatedProblem(initial, initial, everything, True), initial, batch=128)
    history: list[Updates] = []
    models: list[Weights] = []
    for _ in range(ROUNDS):
        models.append(snapshot(training.model))
        history.append(training.retain_round(0.05, epochs=3))
    recipe = TrainingSettings(rounds=12, batch_size=8, learning_rate=0.1, augment=False)
    return FederatedProblem(training.model, initial, parts, True, history, training=recipe), models
