"""Shadow models: the task again with half of its training images, so that of each forget image some models never heard.

They come in pairs: the training images fall into two random halves, whole patients at a time, and each half has a model that
its sites trained together by the task's recipe, from weights of its own. Of the forget images about half are in either: there
they are unlearned, and in the other half nobody ever saw them. What is told of a forget image is so the difference between a
model that unlearned it and one that was never given it (Hayes et al., SaTML 2025), with forget sets that were drawn at random.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import torch
from torch import Generator, Tensor

from excise.common.errors import ConfigError
from excise.common.models import build_model
from excise.simulations.baselines.method import Images
from excise.simulations.contest.task import Progress, SiteImages, Task, trained_or_found
from excise.simulations.scenario import Scenario

FEWEST = 6
"""Models: when a pair is left out, two others must have unlearned an image and two others not."""
VERSION = 1
"""Of how halves are drawn: raise it when they would come out otherwise."""
Patient = tuple[str, str]
"""A site and one of its patients."""


@dataclass(frozen=True)
class Shadow:
    """A shadow model and what it is to forget.

    Attributes
    ----------
    task : the task with half its training images, and models with and without what is to be forgotten of them
    unlearned_N : bool; for each forget image of the whole task (`Task.pooled`) whether it is among them
    pair : number of the draw
    folder : where what belongs to it is kept
    """

    task: Task
    unlearned_N: Tensor
    pair: int
    folder: Path


def check_number(shadows: int) -> None:
    """Refuse a number of shadow models that makes no pairs, or too few.

    Raises
    ------
    ConfigError : it is neither 0 nor an even number of at least `FEWEST`
    """
    if shadows and (shadows < FEWEST or shadows % 2):
        raise ConfigError(f"shadow models come in pairs, at least {FEWEST} of them: expected 0, 6, 8, …, got {shadows}")


def forget_patients(task: Task) -> list[Patient]:
    """Every patient of whom something is to be forgotten; shadow models need at least two."""
    return sorted({(name, patient) for name, site in task.sites.items() for patient in _whose(site)[0]})


def make_shadow(task: Task, scenario: Scenario, number: int, home: Path, progress: Progress) -> Shadow:
    """Shadow model `number` of a task, 0, 1, …; it is trained once, and found again in `home`.

    Raises
    ------
    StorageError : the disk is full
    """
    pair, seed = number // 2, 1000 * (task.seed + 1) + number
    first = _drawn(task, 1000 * (task.seed + 1) + pair)
    halves = {name: _half(site, name, first, number % 2 == 0) for name, site in task.sites.items()}
    sites = {name: site for name, (site, _) in halves.items()}
    folder = home / "shadows" / f"{task.key}-{VERSION}" / str(task.seed) / f"{number:03d}"
    seeded = scenario.model_copy(update={"seed": seed})
    initial = build_model(scenario.model, seed)
    both = {name: _joined(site.forget, site.retain) for name, site in sites.items()}
    kept = {name: site.retain for name, site in sites.items()}

    def tell(text: str) -> None:
        progress(f"{task.name}, seed {task.seed}: shadow model {number + 1}, {text}")

    trained = trained_or_found(folder / "original", seeded, initial, both, True, tell)
    retrained = trained_or_found(folder / "retrained", seeded, initial, kept, False, tell)
    shadow = replace(
        task,
        seed=seed,
        sites=sites,
        initial=initial.eval(),
        trained=trained,
        retrained=retrained.model,
        retraining=retrained.cost,
    )
    return Shadow(shadow, torch.cat([unlearned for _, unlearned in halves.values()]), pair, folder)


def _drawn(task: Task, seed: int) -> set[Patient]:
    """Patients of the first half: half of those of whom something is to be forgotten, and half of the others."""
    forgetting, generator = forget_patients(task), Generator().manual_seed(seed)
    everyone = {(name, patient) for name, site in task.sites.items() for patient in _whose(site)[1]}
    drawn = set[Patient]()
    for among in (forgetting, sorted(everyone - set(forgetting))):
        order = torch.randperm(len(among), generator=generator).tolist()
        drawn |= {among[i] for i in order[: len(among) // 2]}
    return drawn


def _half(site: SiteImages, name: str, first: Collection[Patient], is_first: bool) -> tuple[SiteImages, Tensor]:
    """A site with the training images of one half, and which of its forget images those are, bool (N,)."""
    kept = [[((name, patient) in first) == is_first for patient in whose] for whose in _whose(site)]
    patients = [tuple(compress(whose, of)) for whose, of in zip(_whose(site), kept, strict=True)]
    of_forget, of_retain = (torch.tensor(of, dtype=torch.bool) for of in kept)
    forget, retain = ((x[of], y_N[of]) for (x, y_N), of in ((site.forget, of_forget), (site.retain, of_retain)))
    half = replace(site, forget=forget, retain=retain, forget_patients=patients[0], retain_patients=patients[1])
    return half, of_forget


def _whose(site: SiteImages) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The patient of each forget and of each retain image."""
    forget = site.forget_patients or tuple(f"forget image {i}" for i in range(len(site.forget[1])))
    retain = site.retain_patients or tuple(f"retain image {i}" for i in range(len(site.retain[1])))
    return forget, retain


def _joined(first: Images, second: Images) -> Images:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
