"""Is there a trace of what was forgotten? U-LiRA and RMIA, for which a method unlearns with every shadow model of a task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from excise.client.unlearning.inference import predict
from excise.common.canonical import digest_of
from excise.common.weights import Weights, load_weights, save_weights
from excise.simulations.baselines.method import Images, Settings
from excise.simulations.contest.entry import Entry, tried
from excise.simulations.contest.record import Record, keep, slug
from excise.simulations.contest.shadows import Shadow, forget_patients, make_shadow
from excise.simulations.contest.task import Progress, Task
from excise.simulations.judging.rmia import rmia
from excise.simulations.judging.ulira import ulira
from excise.simulations.scenario import Scenario

LONE = "a single patient is to be forgotten: there is no half of that"
IN_A_ROW = "several requests in a row: shadow models are made for one"
NOT_FINITE = "the outputs of a model that it made of a shadow model are not finite"


def traced(
    records: Sequence[Record],
    task: Task,
    scenario: Scenario,
    entries: Mapping[str, Entry],
    shadows: int,
    home: Path,
    progress: Progress,
) -> list[Record]:
    """Records of a task with the metrics of U-LiRA and RMIA, of the original, the retrained model and each method; kept.

    Parameters
    ----------
    shadows : number of shadow models, even and at least `shadows.FEWEST`; a record that has them of as many stays as it is
    """
    due = [one for one in records if one.shadows != shadows]
    if not due:
        return list(records)
    asked = {one.entry: (entries[one.entry], one.searched.settings) for one in due if not one.failed}
    told = _told(task, scenario, asked, shadows, home, progress)
    done = {}
    for one in due:
        of, reason = told.get(one.entry, ({}, ""))
        original, retrained = told["original"][0], told["retrained"][0]
        done[one.entry] = replace(
            one,
            original={**one.original, **original},
            retrained={**one.retrained, **retrained},
            values={**{name: value for name, value in one.values.items() if name not in original}, **of},
            shadows=shadows,
            untraced=reason,
        )
        keep(done[one.entry], home)
    return [done.get(one.entry, one) for one in records]


def _told(
    task: Task,
    scenario: Scenario,
    asked: Mapping[str, tuple[Entry, Settings]],
    shadows: int,
    home: Path,
    progress: Progress,
) -> dict[str, tuple[dict[str, float], str]]:
    """The metrics of the original, the retrained model and each method, or none and why."""
    names = ["original", "retrained", *asked]
    if task.steps:
        return {name: ({}, IN_A_ROW) for name in names}
    if len(forget_patients(task)) < 2:
        return {name: ({}, LONE) for name in names}
    images = {"forget": task.pooled("forget"), "population": task.pooled("judged")}
    answers: dict[str, list[Weights]] = {name: [] for name in names}
    reasons = dict.fromkeys(names, "")
    unlearned, pairs = [], []
    for number in range(shadows):
        shadow = make_shadow(task, scenario, number, home, progress)
        unlearned.append(shadow.unlearned_N.numpy())
        pairs.append(shadow.pair)
        answers["original"].append(_answer(shadow.task.original, images))
        answers["retrained"].append(_answer(shadow.task.retrained, images))
        for name, (entry, settings) in asked.items():
            if not reasons[name]:
                progress(f"{task.name}, seed {task.seed}: shadow model {number + 1} of {shadows}, {name}")
                answer = _unlearned(shadow, entry, settings, images)
                if isinstance(answer, str):
                    reasons[name] = answer
                else:
                    answers[name].append(answer)
    made = np.stack(unlearned)
    return {name: ({} if reasons[name] else _metrics(answers[name], images, made, pairs), reasons[name]) for name in names}


def _unlearned(shadow: Shadow, entry: Entry, settings: Settings, images: Mapping[str, Images]) -> Weights | str:
    """What the model answers that a method makes of a shadow model, kept beside that; or why there is none."""
    # Of the shadow's own seed, as a method is of its task's: by another, a second retraining could be the first one again.
    seed, chosen = shadow.task.seed, digest_of(json.dumps(settings, sort_keys=True))[:12]
    path = shadow.folder / "answers" / f"{slug(entry.name)}-{seed}-{chosen}.safetensors"
    if path.exists():
        return load_weights(path)
    outcome = tried(partial(entry.run, shadow.task, settings, seed))
    if isinstance(outcome, str):
        return outcome
    answer = _answer(outcome.model, images)
    if not all(bool(logits.isfinite().all()) for logits in answer.values()):
        return NOT_FINITE
    save_weights(answer, path)
    return answer


def _answer(model: nn.Module, images: Mapping[str, Images]) -> Weights:
    """Logits of each set of images."""
    return {name: predict(model, x) for name, (x, _) in images.items()}


def _metrics(
    answers: Sequence[Weights], images: Mapping[str, Images], unlearned_MN: np.ndarray, pairs: Sequence[int]
) -> dict[str, float]:
    """AUC and hits of both attacks: on the forget images, with the judged images as those that nobody trained on."""
    forget_MNC, population_MZC = (torch.stack([one[name] for one in answers]) for name in ("forget", "population"))
    y_N, y_Z = images["forget"][1], images["population"][1]
    found = {
        "ulira": ulira(forget_MNC, y_N, unlearned_MN, draw_M=pairs),
        "rmia": rmia(forget_MNC, y_N, unlearned_MN, population_MZC, y_Z, draw_M=pairs),
    }
    return {f"{name}_{key}": getattr(of, key) for name, of in found.items() for key in ("auc", "tpr")}
