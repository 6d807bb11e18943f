"""How fast the engine is: every figure a ratio of two ways to do one thing, measured side by side in one run.

Three comparisons. A *race*: the authors' published procedure to its end, ours until it is as good. The *search* alone: ours
against its naive form. *Composing* many updates of a large model: seconds and memory against the number of sites.
"""

from __future__ import annotations

import copy
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from excise.client.training import train_locally
from excise.client.unlearning import boundary_search, unlearn
from excise.client.unlearning.inference import predict
from excise.common.metrics import accuracy
from excise.common.models import ModelSpec, build_model
from excise.common.settings import PRESETS, CompositionSettings, SearchSettings, TrainingSettings, UnlearningSettings
from excise.common.weights import load_weights, save_weights, snapshot
from excise.server.composition import Update, new_composer

REPEATS = 5
FORGOTTEN = 0
"""The class that is forgotten."""

SPEC = ModelSpec(name="allcnn", classes=10, size=28, width=0.25, mean=0.2860, std=0.3530)
TRAINING = TrainingSettings(rounds=8, batch_size=128, learning_rate=0.1, augment=False)

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One class to forget.

    Attributes
    ----------
    original, retrained : models trained with and without the class
    forget, retain : training images
    forget_test, retain_test : images that were never trained on
    """

    original: nn.Module
    retrained: nn.Module
    forget: Images
    retain: Images
    forget_test: Images
    retain_test: Images

    def scores(self, model: nn.Module) -> tuple[float, float]:
        """Accuracy on unseen images of the class, and of the others."""
        forget, retain = (accuracy(predict(model, x), y_N) for x, y_N in (self.forget_test, self.retain_test))
        return forget, retain


def class_task(train: Images, test: Images, home: Path, seed: int, progress: Callable[[str], None]) -> Task:
    """Train the two models, or find them in `home`."""
    parts = [(x[keep], y_N[keep]) for x, y_N in (train, test) for keep in (y_N == FORGOTTEN, y_N != FORGOTTEN)]
    models = []
    for name, (x, y_N) in (("original", train), ("retrained", parts[1])):
        path, model = home / f"{name}-{seed}.safetensors", build_model(SPEC, seed)
        if path.exists():
            model.load_state_dict(load_weights(path))
        else:
            for r in range(TRAINING.rounds):
                progress(f"{name}, epoch {r + 1} of {TRAINING.rounds}")
                train_locally(model, x, y_N, TRAINING, r, Generator().manual_seed(1000 * seed + r))
            save_weights(snapshot(model), path)
        models.append(model.eval())
    return Task(models[0], models[1], parts[0], parts[1], parts[2], parts[3])


# ---- the race -----------------------------------------------------------------------------------------------------------


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


def ours(task: Task, settings: UnlearningSettings, seed: int, until: Finish | None = None) -> Finish:
    """Ours, to the end of its schedule, or to the first round that is as good as `until` in both accuracies.

    Scoring after a round is not counted: the published procedure does without, and so may ours once its rounds are known.
    """
    scoring = 0.0
    reached: list[tuple[float, float]] = []

    def as_good(number: int, student: nn.Module) -> bool:
        nonlocal scoring
        if until is None:
            return False
        began = time.perf_counter()
        reached.append(task.scores(student))
        scoring += time.perf_counter() - began
        return reached[-1][0] <= until.forget and reached[-1][1] >= until.retain

    began = time.perf_counter()
    result = unlearn(task.original, task.forget, task.retain, settings=settings, seed=seed, after_round=as_good)
    seconds = time.perf_counter() - began - scoring
    return Finish(seconds, result.passes, *(reached[-1] if reached else task.scores(result.model)))


# ---- the search alone ---------------------------------------------------------------------------------------------------


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


def search_ratio(task: Task, settings: SearchSettings, images: int) -> tuple[list[float], list[float]]:
    """Seconds of the naive search and of ours on the same images, `REPEATS` of each in turn."""
    x, y_N = (part[:images] for part in task.forget)
    slow, fast = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        expected = naive_search(task.original, x, y_N, settings)
        slow.append(time.perf_counter() - began)
        began = time.perf_counter()
        found = boundary_search(task.original, x, y_N, settings, Generator().manual_seed(0))
        fast.append(time.perf_counter() - began)
        torch.testing.assert_close(found.x, expected, atol=2 * settings.eta, rtol=0)  # a sign may turn where it is near zero
    return slow, fast


# ---- composing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Composed:
    """Seconds and memory of composing one round.

    Attributes
    ----------
    sites : updates
    seconds : of taking all of them and making the revised weights
    models : most memory beyond the base and one update, in models of float32
    """

    sites: int
    seconds: float
    models: float


def composing(sites: Sequence[int]) -> list[Composed]:
    """Compose simulated updates of a ResNet-18 (11 million weights) by the mean; each number of sites in its own process."""
    context = multiprocessing.get_context("spawn")  # a process of its own: peak memory is told for a whole process
    results = []
    for count in sites:
        with context.Pool(1) as pool:
            results.append(pool.apply(_compose, (count,)))
    return results


def _compose(sites: int) -> Composed:
    base = snapshot(build_model(ModelSpec(name="resnet18")))
    size = sum(x.numel() * x.element_size() for x in base.values())
    generator = Generator().manual_seed(0)
    delta = {name: 1e-3 * torch.randn(x.shape, generator=generator) for name, x in base.items() if x.is_floating_point()}
    before = _peak_bytes()
    began = time.perf_counter()
    composer = new_composer(CompositionSettings(), base)
    for k in range(sites):
        composer.add(Update(f"site-{k}", delta, 1 / sites, k % 8 == 0))
    composer.result()
    return Composed(sites, time.perf_counter() - began, (_peak_bytes() - before) / size)


def _peak_bytes() -> int:
    """Most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- all of it ----------------------------------------------------------------------------------------------------------


def run_engine(
    train: Images, test: Images, settings: UnlearningSettings, home: Path, seeds: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Every figure of the page: medians, as plain data."""
    races, quality = [], []
    slow, fast = [0.0], [0.0]
    for seed in range(seeds):
        task = class_task(train, test, home, seed, progress)
        progress(f"seed {seed}: race")
        theirs, mine = [], []
        for repeat in range(REPEATS if seed == 0 else 1):
            theirs.append(published(task, repeat))
            mine.append(ours(task, settings, repeat, until=theirs[-1]))
        races.append({"published": _median(theirs), "excise": _median(mine)})
        whole = ours(task, settings, seed)
        seen = accuracy(predict_after(task, settings, seed), task.forget[1])
        quality.append(
            {
                "original": task.scores(task.original),
                "retrained": task.scores(task.retrained),
                "excise": (whole.forget, whole.retain),
                "excise_on_training_images": seen,
                "published": (theirs[0].forget, theirs[0].retain),
            }
        )
        if seed == 0:
            progress("boundary search")
            search = SearchSettings(epsilon=0.25, eta=0.02, max_steps=30, stop="crossed")
            slow, fast = search_ratio(task, search, 2048)
    progress("composing")
    return {
        "races": races,
        "quality": quality,
        "search": {"naive": statistics.median(slow), "excise": statistics.median(fast)},
        "composing": [vars(one) for one in composing((1, 10, 100, 300, 1000))],
    }


def predict_after(task: Task, settings: UnlearningSettings, seed: int) -> Tensor:
    """Logits of the forgotten training images after our procedure."""
    return predict(unlearn(task.original, task.forget, task.retain, settings=settings, seed=seed).model, task.forget[0])


def _median(finishes: Sequence[Finish]) -> dict[str, float]:
    """The run of median time."""
    return vars(replace(sorted(finishes, key=lambda finish: finish.seconds)[len(finishes) // 2]))
