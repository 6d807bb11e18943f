"""EU-k, exact unlearning of the last k layers: they begin anew and are trained with the retain images.

    min over the last k layers  E_R CE(f(x; θ), y),   from weights drawn anew in those layers

(Goel et al., arXiv 2201.06640.) In the code published with the sign-gradient paper (arXiv 2505.21872) EU-k re-initialises
nothing, which makes it CF-k; here the layers are drawn anew, batch norm's statistics with them.
"""

from __future__ import annotations

from torch import nn

from excise.simulations.baselines.central.cf_k import train_last
from excise.simulations.baselines.descent import BATCH, Descent, begin_anew, last_layers
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings


def _run(problem: Problem, settings: Settings) -> Made:
    k = int(settings["layers"])

    def choose(model: nn.Module) -> list[nn.Parameter]:
        return last_layers(model, k)

    descent = Descent(problem.original, settings["learning_rate"], choose)
    begin_anew(descent.model, k, problem.seed)
    return train_last(descent, problem, settings)


EU_K = Method(
    "EU-k",
    _run,
    "Goel et al., arXiv 2201.06640",
    {
        "learning_rate": Knob(1e-3, 0.2, 0.05, log=True),
        "layers": Knob(1, 6, 3, whole=True),
        "epochs": Knob(1, 8, 4, whole=True),
        "batch": BATCH,
    },
)
