"""PUF: what a site's training on its forget images would change is subtracted, scaled; then recovery rounds.

    θ ← θ − s·Σ_k (n_k^f / N_f)·Δ_k^f,      Δ_k^f = what ordinary training on D_k^f changes: a pseudo-gradient

(Mora et al., arXiv 2504.05822.) In that round the forgetting sites alone take part. Batch norm's statistics stay as they were:
a negated variance means nothing.
"""

from __future__ import annotations

from dataclasses import replace

from excise.simulations.baselines.descent import BATCH
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.federated.rounds import RATE, Federation, mean, parameters_of
from excise.simulations.baselines.method import Knob, Settings


def _run(problem: FederatedProblem, settings: Settings) -> Composed:
    federation = Federation(problem, problem.original, settings["batch"])
    learned = {name: federation.train(name, problem.sites[name].forget, RATE) for name in problem.forgetting}
    composed = parameters_of(mean(learned, problem.forget))
    federation.add({name: -settings["scale"] * value for name, value in composed.items()})
    for _ in range(int(settings["recovery"])):
        federation.retain_round(settings["learning_rate"])
    return federation.made()


PUF = FederatedMethod(
    "PUF",
    _run,
    "Mora et al., arXiv 2504.05822",
    {
        "scale": Knob(0.1, 50.0, 5.0, log=True),
        "learning_rate": Knob(1e-3, 0.2, 0.05, log=True),
        "recovery": Knob(0, 8, 2, whole=True),
        "batch": replace(BATCH, default=128),
    },
)
