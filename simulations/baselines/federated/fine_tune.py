"""Fine-tuning rounds: federated averaging goes on, with retain images alone, and the rest may fade.

    min_θ  Σ_k (n_k^r / N_r)·L_k^r(θ),   from the original's θ

The federated form of the first baseline of nearly every paper.
"""

from __future__ import annotations

from dataclasses import replace

from excise.simulations.baselines.descent import BATCH
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.federated.rounds import Federation
from excise.simulations.baselines.method import Knob, Settings


def _run(problem: FederatedProblem, settings: Settings) -> Composed:
    federation = Federation(problem, problem.original, settings["batch"])
    for _ in range(int(settings["rounds"])):
        federation.retain_round(settings["learning_rate"])
    return federation.made()


FINE_TUNE = FederatedMethod(
    "fine-tune rounds",
    _run,
    "the usual first baseline",
    {
        "learning_rate": Knob(1e-3, 0.2, 0.05, log=True),
        "rounds": Knob(1, 10, 3, whole=True),
        "batch": replace(BATCH, default=32),
    },
)
