"""Several requests one after another: each is made to the model that the method itself made of the one before.

Is B forgotten from the model that has forgotten A, then A is in no set any more that the method is given, and may come back.
The final model is judged as any other, against one retrained without all that was forgotten; `on_the_way` tells the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor, nn

from excise.client.unlearning.inference import predict
from excise.common.metrics import accuracy
from excise.simulations.baselines.method import Images, Settings
from excise.simulations.contest.entry import Entry, Outcome
from excise.simulations.contest.task import Task
from excise.simulations.judging.cost import summed
from excise.simulations.judging.distance import Accuracies, tow


def carry_out(entry: Entry, task: Task, settings: Settings, seed: int) -> Outcome:
    """Unlearn a task by a method: its one request, or each of its requests from the model of the one before.

    What sites sent in the rounds of training is the same for every request: nobody stored other updates.

    Raises
    ------
    ConfigError, Diverged : as the method does
    """
    if not task.steps:
        return entry.run(task, settings, seed)
    done: list[Outcome] = []
    for step in task.steps:
        before = done[-1].model if done else task.original
        done.append(entry.run(replace(step, trained=replace(step.trained, model=before)), settings, seed))
    *earlier, last = (one.model for one in done)
    return Outcome(last, summed([one.cost for one in done]), tuple(earlier))


def on_the_way(task: Task, models: Sequence[nn.Module]) -> dict[str, float]:
    """What the last model alone does not tell, by the names of `judging/metrics.py`; nothing of a task of one request.

    ``earlier_forget_accuracy``: of the last model on what the earlier requests forgot. ``came_back``: that, less the accuracy
    of each request's own model on the same images. ``earlier_tow``: mean over the earlier requests of the closeness of their
    models to those retrained without all that was forgotten by then.

    Parameters
    ----------
    models : after each request

    Raises
    ------
    ValueError : there is not one model for each request
    """
    if len(models) != (len(task.steps) or 1):
        raise ValueError(f"expected one model for each of {len(task.steps) or 1} requests, got {len(models)}")
    if not task.steps:
        return {}
    *earlier, _ = zip(task.steps, models, strict=True)
    then = torch.cat([_right(model, step.pooled("forget")) for step, model in earlier])
    now = torch.cat([_right(models[-1], step.pooled("forget")) for step, _ in earlier])
    closeness = []
    for number, (step, model) in enumerate(earlier):
        forgotten = [one.pooled("forget") for one in task.steps[: number + 1]]
        sets = (
            (torch.cat([x for x, _ in forgotten]), torch.cat([y_N for _, y_N in forgotten])),
            *(step.pooled(kind) for kind in ("retain", "judged")),
        )
        own, gold = (Accuracies(*(accuracy(predict(of, x), y_N) for x, y_N in sets)) for of in (model, step.retrained))
        closeness.append(tow(own, gold))
    return {
        "earlier_forget_accuracy": float(now.mean()),
        "came_back": float(now.mean() - then.mean()),
        "earlier_tow": fmean(closeness),
    }


def _right(model: nn.Module, images: Images) -> Tensor:
    """1 for each image whose class is told right, else 0: float64 (N,)."""
    return (predict(model, images[0]).argmax(1) == images[1]).double()
