"""How well the engine forgets: a class, in one place and over eight sites; a share of a class; and what comes back later.

Everything is scored beside a model retrained without what was forgotten.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Generator, nn

from excise.client.training import train_locally
from excise.client.unlearning import unlearn
from excise.client.unlearning.inference import predict
from excise.common.metrics import membership_auc
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import RoundSettings, UnlearningSettings
from excise.common.weights import load_weights, save_weights, snapshot
from excise.server.record import REVISED, RunFolder
from excise.simulations.bench.fashion_models import SPEC, TRAINING, Images, Task, load, score, take
from excise.simulations.engine import run_plan
from excise.simulations.run import plan_for
from excise.simulations.scenario import Partition, Scenario, ScenarioData
from excise.simulations.sites import make_sites

SITES = 8
Spread = Literal["iid", "forget-on-one-site"]
SCORES = ("forget", "unseen", "auc", "retain_test")
"""Of forgotten images: accuracy on them, on unseen images of their class and of the others, and the membership test's AUC."""
LATER_RATE = 0.01
"""Step size of the retain-only epoch after unlearning, a tenth of training's."""


def of_class(task: Task, student: nn.Module, seed: int) -> dict[str, float]:
    """Accuracies of one model on the class and on the others, and on the class after a retain-only epoch."""
    later = after_an_epoch(student, task.retain, seed)
    return {
        "forget_test": score(student, task.forget_test),
        "forget_train": score(student, task.forget),
        "retain_test": score(student, task.retain_test),
        "resurfaced": score(later, task.forget_test),
    }


def over_sites(
    task: Task, c: int, kind: Spread, train: Images, settings: UnlearningSettings, home: Path, seed: int
) -> nn.Module:
    """The model that eight sites unlearn together through the real apps; the class lies at one of them or at all."""
    npz, deployed = home / "images.npz", home / "deployed.safetensors"
    home.mkdir(parents=True, exist_ok=True)
    np.savez(npz, images=train[0][:, 0].numpy(), labels=train[1].numpy())
    save_weights(snapshot(task.original), deployed)
    scenario = Scenario(
        name="bench",
        seed=seed,
        data=ScenarioData(source="npz", path=npz),
        partition=Partition(sites=SITES, kind=kind),
        model=SPEC,
        request=ForgetRequest(id="bench", kind=RequestKind.CLASS, where=f'class = "{c}"', reason="benchmark"),
        unlearning=settings,
        rounds=RoundSettings(watch=False),  # only its last model is looked at
    )
    sites = make_sites(scenario, home)
    plan = plan_for(scenario, sites).model_copy(update={"deployed": deployed, "retrain": False})
    folder = RunFolder(home / f"run-{kind}-{seed}")
    shutil.rmtree(folder.path, ignore_errors=True)
    run_plan(plan, sites.configs, folder, "inprocess", lambda *_: None)
    save_weights(load_weights(folder.path / REVISED), home / "revised.safetensors")
    return load(home / "revised.safetensors")


def of_samples(task: Task, settings: UnlearningSettings, seed: int) -> dict[str, dict[str, float]]:
    """Scores of the original, the retrained and the unlearned model on forgotten images of one class.

    Half of the class's unseen images calibrate the targets, the other half are what the membership attack compares with.
    The forget images are a random part of the class, which is what ``level = "retain"`` is for; beside it the other level.
    Scores of the retrained model are the means of several.
    """
    unseen, compared = take(task.forget_test, slice(0, None, 2)), take(task.forget_test, slice(1, None, 2))
    models = {"original": [task.original], "retrained": [task.retrained, *task.retrained_again]}
    levels: dict[str, Literal["retain", "unseen"]] = {"excise": "retain", 'excise, level = "unseen"': "unseen"}
    for name, level in levels.items():
        target = settings.target.model_copy(update={"level": level})
        tried = settings.model_copy(update={"target": target})
        models[name] = [unlearn(task.original, task.forget, task.retain, unseen, tried, seed).model]
    scores: dict[str, dict[str, float]] = {}
    for name, alike in models.items():
        each = [_of_sample(model, task, compared, seed) for model in alike]
        scores[name] = {key: sum(one[key] for one in each) / len(each) for key in each[0]}
    return scores


def _of_sample(model: nn.Module, task: Task, compared: Images, seed: int) -> dict[str, float]:
    """`SCORES` of one model, and as ``<score>_later`` those after one more epoch on retain images."""
    found: dict[str, float] = {}
    for name, one in (("", model), ("_later", after_an_epoch(model, task.retain, seed))):
        scores = (
            score(one, task.forget),
            score(one, compared),
            _auc(one, task.forget, compared),
            score(one, task.retain_test),
        )
        found |= {f"{key}{name}": value for key, value in zip(SCORES, scores, strict=True)}
    return found


def after_an_epoch(model: nn.Module, retain: Images, seed: int) -> nn.Module:
    """A copy of the model, trained on retain images alone for one more epoch: what was only hidden comes back."""
    later = copy.deepcopy(model)
    settings = TRAINING.model_copy(update={"rounds": 1, "learning_rate": LATER_RATE})
    train_locally(later, *retain, settings, 0, Generator().manual_seed(seed))
    return later


def _auc(model: nn.Module, members: Images, others: Images) -> float:
    losses = [F.cross_entropy(predict(model, x), y_N, reduction="none").numpy() for x, y_N in (members, others)]
    return membership_auc(*losses)
