"""The engine against the clock: every figure a ratio of two ways to do one thing, measured in turn in one run.

A *race*: the authors' published procedure to its end, ours until it is as good. The *search* alone: ours
against its naive form.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.client.unlearning import boundary_search, unlearn
from excise.common.settings import PRESETS, SearchSettings, UnlearningSettings
from excise.simulations.bench.fashion_models import Progress, Task


@dataclass(frozen=True)
class Finish:
    """How one procedure ended: wall time, images processed, accuracy on unseen images of the class and of the others."""

    seconds: float
    passes: int
    forget: float
    retain: float


def published(task: Task, seed: int) -> Finish:
    """The authors' procedure, to its end."""
    began = time.perf_counter()
    result = unlearn(task.original, task.forget, task.retain, settings=PRESETS["published"], seed=seed)
    seconds = time.perf_counter() - began
    return Finish(seconds, result.passes, *task.scores(result.model))


def ours(task: Task, settings: UnlearningSettings, seed: int, until: Finish) -> Finish:
    """Ours, to the first round that is as good as `until` in both accuracies, or to the end of its schedule.

    Scoring after a round is not counted: the published procedure does without.
    """
    scoring, reached = 0.0, (1.0, 0.0)

    def as_good(_: int, student: nn.Module) -> bool:
        nonlocal scoring, reached
        began = time.perf_counter()
        reached = task.scores(student)
        scoring += time.perf_counter() - began
        return reached[0] <= until.forget and reached[1] >= until.retain

    began = time.perf_counter()
    result = unlearn(task.original, task.forget, task.retain, settings=settings, seed=seed, after_round=as_good)
    return Finish(time.perf_counter() - began - scoring, result.passes, *reached)


def race(task: Task, settings: UnlearningSettings, repeats: int, progress: Progress) -> dict[str, Finish]:
    """The published procedure and ours in turn, `repeats` times; of each the run of median time."""
    finishes: dict[str, list[Finish]] = {"published": [], "excise": []}
    for repeat in range(repeats):
        progress(f"race {repeat + 1} of {repeats}")
        finishes["published"].append(published(task, repeat))
        finishes["excise"].append(ours(task, settings, repeat, finishes["published"][-1]))
    return {name: sorted(runs, key=lambda one: one.seconds)[len(runs) // 2] for name, runs in finishes.items()}


def naive_search(teacher: nn.Module, x: Tensor, y_N: Tensor, settings: SearchSettings) -> Tensor:
    """The search as one would first write it: gradients of the weights as well, every image in every step.

    Returns the last points; images that have crossed stay where they are, so the answer is that of `boundary_search`.
    """
    teacher = copy.deepcopy(teacher).eval()
    moved = []
    for x0, y in zip(x.split(settings.batch_size), y_N.split(settings.batch_size), strict=True):
        at = x0.clone()
        crossed = torch.zeros(len(x0), dtype=torch.bool)
        for t in range(settings.max_steps):
            at = at.detach().requires_grad_(True)
            logits = teacher(at)
            crossed |= logits.detach().argmax(1) != y
            F.cross_entropy(logits, y, reduction="sum").backward()
            assert at.grad is not None
            step = settings.eta / (t + 1) ** 0.5 * at.grad.sign()
            stepped = torch.minimum(torch.maximum(at.detach() + step, x0 - settings.epsilon), x0 + settings.epsilon).clamp(
                0, 1
            )
            at = torch.where(crossed.view(-1, 1, 1, 1), at.detach(), stepped)
        moved.append(at.detach())
    return torch.cat(moved)


def search_seconds(task: Task, settings: SearchSettings, images: int, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of the naive search and of ours on the same images, `repeats` of each in turn."""
    x, y_N = (part[:images] for part in task.forget)
    slow, fast = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        expected = naive_search(task.original, x, y_N, settings)
        slow.append(time.perf_counter() - began)
        began = time.perf_counter()
        found = boundary_search(task.original, x, y_N, settings, Generator().manual_seed(0))
        fast.append(time.perf_counter() - began)
        torch.testing.assert_close(found.x, expected, atol=2 * settings.eta, rtol=0)  # a sign may turn where it is near zero
    return slow, fast
