"""FedQUIT-like: a forgetting site learns from the global model with the true class made as unlikely as its least likely one.

    min_θ  L_k^f = E_F KL( softmax(T(x) with the logit of y at the least of the image's logits) ‖ S(x) )

(After Mora et al., arXiv 2408.07587, whose public code has several such teachers.) The server takes the forgetting sites'
update alone, and training goes on from there: recovery rounds on retain images.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Generator, Tensor

from excise.simulations.baselines.descent import BATCH, Descent, batches, untrained
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.federated.rounds import RATE, Federation, mean
from excise.simulations.baselines.method import Knob, Settings


def quasi_competent(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """Probabilities with the true class's logit at the least of the image's logits."""
    return logits_NC.scatter(1, y_N[:, None], logits_NC.min(1, keepdim=True).values).softmax(1)


def _run(problem: FederatedProblem, settings: Settings) -> Composed:
    federation, teacher = Federation(problem, problem.original, settings["batch"]), untrained(problem.original)
    updates, generator = {}, Generator().manual_seed(problem.seed)
    for name in problem.forgetting:
        descent = Descent(federation.model, settings["learning_rate"])
        descent.model.eval()  # batches of forget images alone would spoil batch norm's statistics
        for _ in range(int(settings["epochs"])):
            for x, y in batches(problem.sites[name].forget, generator, federation.batch):
                told = quasi_competent(teacher(x), y)
                descent.step(F.kl_div(descent(x).log_softmax(1), told, reduction="batchmean"))
                descent.passes += len(y)
        updates[name] = federation.update_of(name, descent)
    federation.add(mean(updates, problem.forget))
    for _ in range(int(settings["recovery"])):
        federation.retain_round(RATE)
    return federation.made()


FED_QUIT = FederatedMethod(
    "FedQUIT-like",
    _run,
    "Mora et al., arXiv 2408.07587",
    {
        "learning_rate": Knob(1e-4, 0.1, 0.01, log=True),
        "epochs": Knob(1, 10, 3, whole=True),
        "recovery": Knob(0, 8, 2, whole=True),
        "batch": BATCH,
    },
)
