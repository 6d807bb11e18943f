"""Retraining: all rounds again from the initial model, with retain images alone. What the others are measured against.

    min_θ  Σ_k (n_k^r / N_r)·L_k^r(θ),   from θ_init, by federated averaging

(McMahan et al., AISTATS 2017.)
"""

from __future__ import annotations

from excise.simulations.baselines.descent import BATCH
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.federated.rounds import Federation
from excise.simulations.baselines.method import Knob, Settings


def _run(problem: FederatedProblem, settings: Settings) -> Composed:
    federation = Federation(problem, problem.initial, settings["batch"])
    for _ in range(int(settings["rounds"])):
        federation.retain_round(settings["learning_rate"])
    return federation.made()


RETRAIN = FederatedMethod(
    "retrain",
    _run,
    "McMahan et al., AISTATS 2017",
    {"learning_rate": Knob(1e-3, 0.2, 0.1, log=True), "rounds": Knob(1, 200, 20, whole=True), "batch": BATCH},
)
