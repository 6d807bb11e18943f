"""Retraining once more: the recipe of the deployed model on retain images alone, from other initial weights, in other orders.

    min_θ  Σ_k (n_k^r / N_r)·L_k^r(θ),   from θ_init, by federated averaging

(McMahan et al., AISTATS 2017.) What others are measured against is retrained too, from the initial weights of the deployed
model. How far this one is from that is chance: no method can be asked to come nearer (docs/adr/0029-retrained-again.md).
"""

from __future__ import annotations

import copy

from excise.simulations.baselines.descent import begin_anew, layers
from excise.simulations.baselines.federated.averaging import average
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.method import Settings

ANOTHER = 1000
"""How far its seed is from the problem's, of which the retrained model is."""


def _run(problem: FederatedProblem, settings: Settings) -> Composed:
    initial, seed = copy.deepcopy(problem.initial), problem.seed + ANOTHER
    begin_anew(initial, len(layers(initial)), seed)
    made = average(initial, {name: part.retain for name, part in problem.sites.items()}, problem.training, seed)
    return Composed(made.model, made.passes, problem.training.rounds, dict(made.traffic.up), dict(made.traffic.down))


RETRAIN = FederatedMethod("retrain again", _run, "McMahan et al., AISTATS 2017")
