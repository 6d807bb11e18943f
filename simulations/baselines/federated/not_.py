"""NoT: the first layer's weights change their sign, and federated averaging on retain images mends what that breaks.

    θ_1 ← −θ_1,   then   min_θ Σ_k (n_k^r / N_r)·L_k^r(θ)

(Khalil et al., CVPR 2025.) Nobody's forget images are needed. Only the weight is negated, neither its bias nor batch norm.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from excise.simulations.baselines.descent import BATCH, layers
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.federated.rounds import Federation
from excise.simulations.baselines.method import Knob, Settings


def negated(model: nn.Module, first: int) -> nn.Module:
    """A copy of a model with the weights of its first layers negated."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers(model)[:first]:
            layer[0].get_parameter("weight").neg_()
    return model


def _run(problem: FederatedProblem, settings: Settings) -> Composed:
    federation = Federation(problem, negated(problem.original, int(settings["layers"])), settings["batch"])
    for _ in range(int(settings["rounds"])):
        federation.retain_round(settings["learning_rate"])
    return federation.made()


NOT = FederatedMethod(
    "NoT",
    _run,
    "Khalil et al., CVPR 2025",
    {
        "layers": Knob(1, 2, 1, whole=True),
        "learning_rate": Knob(1e-3, 0.2, 0.05, log=True),
        "rounds": Knob(1, 10, 5, whole=True),
        "batch": replace(BATCH, default=32),
    },
)
