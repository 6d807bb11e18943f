"""The engine against the clock: every figure a ratio of two ways to do one thing, measured in turn in one run.

A *race*: the authors' published procedure to its end, ours until it is as good. The *search* alone: ours
against its naive form.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.client.unlearning import boundary_search, unlearn
from excise.common.settings import PRESETS, SearchSettings, UnlearningSettings
from excise.simulations.bench.fashion_models import Progress, Task, take


@dataclass(frozen=True)
class Finish:
    """How one procedure ended: wall time, images processed, accuracy on unseen images of the class and of the others."""

    seconds: float
    passes: int
    forget: float
    retain: float

    def as_good_as(self, other: Finish) -> bool:
        """At most its accuracy on the class, and at least its accuracy on the others."""
        return self.forget <= other.forget and self.retain >= other.retain


@dataclass(frozen=True)
class Race:
    """One run of each.

    Attributes
    ----------
    published : the authors' procedure, to its end
    excise : ours, to the first round that is as good, or to its end
    """

    published: Finish
    excise: Finish

    @property
    def ratio(self) -> float:
        """How many times as fast ours was as good."""
        return self.published.seconds / self.excise.seconds


def run(task: Task, settings: UnlearningSettings, seed: int, until: Finish | None = None) -> Finish:
    """One procedure to the end of its schedule, or to the first round that is as good as `until`.

    Scoring is not counted: it tells when to stop here, on images that nobody has in earnest.
    """
    scoring, reached = 0.0, None

    def as_good(number: int, student: nn.Module) -> bool:
        nonlocal scoring, reached
        if until is None and number < settings.local.rounds:
            return False
        began = time.perf_counter()
        reached = Finish(0.0, 0, *task.scores(student))
        scoring += time.perf_counter() - began
        return until is not None and reached.as_good_as(until)

    began = time.perf_counter()
    result = unlearn(task.original, task.forget, task.retain, settings=settings, seed=seed, after_round=as_good)
    seconds = time.perf_counter() - began - scoring
    assert reached is not None  # the last round is always scored
    return replace(reached, seconds=seconds, passes=result.passes)


def race(task: Task, settings: UnlearningSettings, repeats: int, progress: Progress) -> tuple[Race, bool]:
    """Race `repeats` times; return the race of median ratio, and whether ours was as good in all of them."""
    races = []
    for repeat in range(repeats):
        progress(f"race {repeat + 1} of {repeats}")
        published = run(task, PRESETS["published"], repeat)
        races.append(Race(published, run(task, settings, repeat, published)))
    median = sorted(races, key=lambda one: one.ratio)[len(races) // 2]
    return median, all(one.excise.as_good_as(one.published) for one in races)


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


@dataclass(frozen=True)
class Searched:
    """Median seconds of the naive search and of ours, and the share of pixels that end alike to 1e-4."""

    naive: float
    excise: float
    alike: float


def compare_searches(task: Task, settings: SearchSettings, images: int, repeats: int) -> Searched:
    """The naive search and ours on the same images, `repeats` of each in turn.

    They are one search, but round otherwise, since batches differ: a gradient near zero may turn its sign.
    """
    x, y_N = take(task.forget, slice(images))
    slow, fast, alike = [], [], 1.0
    for _ in range(repeats):
        began = time.perf_counter()
        expected = naive_search(task.original, x, y_N, settings)
        slow.append(time.perf_counter() - began)
        began = time.perf_counter()
        found = boundary_search(task.original, x, y_N, settings, Generator().manual_seed(0)).x
        fast.append(time.perf_counter() - began)
        alike = min(alike, float(((found - expected).abs() < 1e-4).float().mean()))
    return Searched(statistics.median(slow), statistics.median(fast), alike)
