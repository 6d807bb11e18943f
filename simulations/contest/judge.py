"""How a model of the benchmark is judged: when settings are chosen, on some images; in the end, on others."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from excise.client.unlearning.inference import predict
from excise.client.unlearning.labels import boundary_losses
from excise.common.errors import ConfigError
from excise.common.metrics import accuracy, membership_auc
from excise.common.settings import TrainingSettings
from excise.simulations.baselines.method import Images
from excise.simulations.contest.task import Task
from excise.simulations.judging.distance import Accuracies, tow
from excise.simulations.judging.scorecard import Card, Case, JudgingSettings, scorecards
from excise.simulations.judging.utility import by_group

FEWEST = 20
"""Unseen images of the forgotten kind (that scanner, say) from which on the membership tests compare with these alone."""
LATER_RATE = 0.1
"""Step size of the retain-only epoch after unlearning, as a share of training's."""


class Objective:
    """That by which settings of all methods are chosen on a task; 0 is a model as the retrained one, less is not possible.

    ``1 − ToW + |AUC − AUC of the retrained model|``, of accuracies on the forget, retain and tuning images, and of the
    loss-threshold test of forget against tuning images such as are forgotten.

    Raises
    ------
    ConfigError : an output of the retrained model is not finite, or the membership test has nothing to compare with
    """

    def __init__(self, task: Task) -> None:
        forget, retain, tuning = (task.pooled(kind) for kind in ("forget", "retain", "tuning"))
        self._images = forget, retain, tuning, _alike(task.pooled("alike_tuning"), tuning, forget)
        gold = self._looked(task.retrained)
        if gold is None:
            raise ConfigError(f"the retrained model of scenario '{task.name}' is no model: its outputs are not finite")
        self._gold = gold

    def __call__(self, model: nn.Module) -> float:
        """Of a model; infinite where an output is not finite."""
        own = self._looked(model)
        return math.inf if own is None else 1 - tow(own[0], self._gold[0]) + abs(own[1] - self._gold[1])

    def _looked(self, model: nn.Module) -> tuple[Accuracies, float] | None:
        """Accuracies and the AUC of the membership test; None where an output is not finite."""
        logits = [predict(model, x) for x, _ in self._images]
        if not all(bool(of.isfinite().all()) for of in logits):
            return None
        labels = [y_N for _, y_N in self._images]
        scores = Accuracies(*map(accuracy, logits[:3], labels[:3]))
        losses = boundary_losses(logits[0], labels[0]), boundary_losses(logits[3], labels[3])
        return scores, membership_auc(*(of.numpy() for of in losses))


def case_of(task: Task) -> Case:
    """The task's forget, retain and judged images, as the metrics take them.

    Those of what is forgotten, such as other images of a scanner with a fault, are for the membership test alone: they may be
    what nobody wants the model to be good at.
    """
    judged, forget = task.pooled("judged"), task.pooled("forget")
    alike = _alike(task.pooled("alike"), judged, forget)
    sites = tuple(name for name, site in task.sites.items() for _ in site.judged[1])
    return Case(forget, task.pooled("retain"), judged, alike, task.whole_class, sites)


def judge(task: Task, models: Mapping[str, nn.Module], training: TrainingSettings, seed: int) -> dict[str, Card]:
    """Every metric of each model, and of the ``original`` and the ``retrained`` one.

    Parameters
    ----------
    training : as the deployed model was trained
    """
    all_of = {"original": task.original, "retrained": task.retrained, **models}
    later = training.model_copy(update={"learning_rate": LATER_RATE * training.learning_rate, "rounds": 1, "epochs": 1})
    return scorecards(all_of, "original", "retrained", case_of(task), JudgingSettings(training=later), seed)


def accuracies(task: Task, model: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
    """A model's accuracy on the test images of each site and of each class, by name, in [0, 1]; of those that have any."""
    case = case_of(task)
    logits, y_N = predict(model, case.test[0]), case.test[1]
    of_sites, of_classes = by_group(logits, y_N, case.sites), by_group(logits, y_N, y_N.tolist())
    return (
        {name: of_sites[name].accuracy for name in task.sites if name in of_sites},
        {name: of_classes[c].accuracy for c, name in enumerate(task.classes) if c in of_classes},
    )


def _alike(alike: Images, others: Images, forget: Images) -> Images:
    """Unseen images with which the forget images are compared: such as they are, or of their classes where those are few.

    Raises
    ------
    ConfigError : there are none at all
    """
    if len(alike[1]) >= FEWEST:
        return alike
    rows = torch.isin(others[1], forget[1].unique())
    found = max(alike, (others[0][rows], others[1][rows]), key=lambda images: len(images[1]))
    if not len(found[1]):
        raise ConfigError("the membership test needs held-out images of the forgotten classes, and no site has any")
    return found
