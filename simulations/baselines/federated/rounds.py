"""Rounds of federated averaging in one process, without messages, counted; and arithmetic on updates.

*Parameters* are scaled, projected and measured; *statistics* of batch norm are averaged at most: a negated or lengthened
variance means nothing (as in `server/composition/composer.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.common.weights import Weights, difference, is_statistic, moved, snapshot
from excise.simulations.baselines.descent import BATCH, Descent, batches
from excise.simulations.baselines.federated.problem import Composed, FederatedProblem, Updates
from excise.simulations.baselines.federated.traffic import Traffic, size_of
from excise.simulations.baselines.method import Images

RATE = 0.05
"""Step size of a site's ordinary training where a method has no knob for it."""


class Federation:
    """A global model that changes round by round.

    Attributes
    ----------
    model : the global model, in evaluation mode
    batch : images of a step of the sites' training
    passes, rounds : images sent through any model so far, and times that sites were asked and answered
    traffic : bytes that the sites were sent and sent so far
    """

    def __init__(self, problem: FederatedProblem, model: nn.Module, batch: float = BATCH.default) -> None:
        """Begin with a copy of `model`; sites train on `batch` images at a time."""
        self.problem, self.model = problem, copy.deepcopy(model).eval()
        self.passes = self.rounds = 0
        self.batch = int(batch)
        self.traffic = Traffic()
        self._generator = Generator().manual_seed(problem.seed)

    def train(self, site: str, images: Images, learning_rate: float, epochs: int = 1) -> Weights:
        """The update of a site that is sent the global model, and trains it on `images`."""
        descent = Descent(self.model, learning_rate)
        for _ in range(epochs):
            for x, y in batches(images, self._generator, self.batch):
                descent.step(F.cross_entropy(descent(x), y))
        return self.update_of(site, descent)

    def update_of(self, site: str, descent: Descent) -> Weights:
        """What a site's descent changed in the global model; its passes, and that model and update travelled, are counted."""
        made = descent.made()
        self.passes += made.passes
        before = snapshot(self.model)
        update = difference(snapshot(made.model), before)
        self.traffic.add(site, down=size_of(before), up=size_of(update))
        return update

    def retain_round(self, learning_rate: float, epochs: int = 1) -> Updates:
        """A round on retain images at every site that has some; the global model is changed. Returns the updates."""
        retain = {name: self.problem.sites[name].retain for name in self.problem.keeping}
        updates = {name: self.train(name, images, learning_rate, epochs) for name, images in retain.items()}
        self.add(mean(updates, self.problem.retain))
        return updates

    def add(self, update: Mapping[str, Tensor]) -> None:
        """Change the global model, which counts as a round."""
        weights = moved(self.model.state_dict(), update)
        for name, value in weights.items():
            if name.endswith("running_var"):
                value.clamp_min_(0.0)
        self.model.load_state_dict(weights)
        self.rounds += 1

    def made(self) -> Composed:
        """The global model as it is now."""
        return Composed(self.model, self.passes, self.rounds, dict(self.traffic.up), dict(self.traffic.down))


def mean(updates: Updates, images: Mapping[str, int]) -> Weights:
    """Mean of at least one update, weighed by the sites' numbers of images, as federated averaging does."""
    total = sum(images[name] for name in updates)
    first = next(iter(updates.values()))
    return {key: torch.stack([images[name] / total * updates[name][key] for name in updates]).sum(0) for key in first}


def parameters_of(update: Mapping[str, Tensor]) -> Weights:
    """An update without batch norm's statistics."""
    return {name: value for name, value in update.items() if not is_statistic(name)}


def flat(update: Mapping[str, Tensor]) -> Tensor:
    """An update's parameters as one vector."""
    return torch.cat([value.flatten() for value in parameters_of(update).values()])


def shaped(vector: Tensor, like: Mapping[str, Tensor]) -> Weights:
    """Such a vector as an update again, with the statistics of `like`."""
    parameters = parameters_of(like)
    parts = vector.split([value.numel() for value in parameters.values()])
    return dict(like) | {name: part.reshape(parameters[name].shape) for name, part in zip(parameters, parts, strict=True)}
