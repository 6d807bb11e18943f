"""What methods are given and what they are judged on: one scenario at its simulated sites, in memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Generator, Tensor, nn

from excise.client.site import Site, open_site
from excise.common.errors import ConfigError
from excise.common.files import write_atomically
from excise.common.models import build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import TrainingSettings
from excise.common.weights import Weights, load_weights, save_weights, snapshot
from excise.simulations.baselines.federated.problem import FederatedProblem, Part
from excise.simulations.baselines.method import Aim, Images, Problem, aim_of
from excise.simulations.contest.together import Together, train_together
from excise.simulations.judging.cost import Cost, summed
from excise.simulations.scenario import Scenario
from excise.simulations.sites import make_sites

MODELS = 3
"""Raise it when the code here trains other models; those that are kept are trained anew then."""
VERSION = 7
"""Raise it when methods are given something else, or are judged by something else; all results are made anew then."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class SiteImages:
    """The images of one site.

    Attributes
    ----------
    forget, retain : it was trained on; they are to be forgotten and to be kept
    unseen : never trained on; methods may look at them, as sites use reference images
    tuning : never trained on; settings are chosen by them, and methods may look at them as well
    judged : never trained on; methods are judged by them, and nothing is chosen by them
    alike, alike_tuning : never trained on, and such as are to be forgotten (the same scanner, say): there may be none. By the
        first methods are judged, by the others settings are chosen
    forget_patients, retain_patients : whose the first two are; empty where each is of a patient of its own
    """

    forget: Images
    retain: Images
    unseen: Images
    tuning: Images
    judged: Images
    alike: Images
    alike_tuning: Images
    forget_patients: tuple[str, ...] = ()
    retain_patients: tuple[str, ...] = ()

    @property
    def given(self) -> Images:
        """What methods may look at of what was never trained on. A few reference images alone are a matter of luck."""
        (x, y_N), (more_x, more_N) = self.unseen, self.tuning
        return torch.cat([x, more_x]), torch.cat([y_N, more_N])


@dataclass(frozen=True)
class Task:
    """Something to be forgotten of a model that sites trained together, and the model that was retrained without it.

    Attributes
    ----------
    name, seed : of the scenario
    key : its name, with a digest of all that a task of any seed depends on
    whole_class : whether the forget images are all there are of their classes
    wrong_labels : whether they are forgotten since their labels are wrong
    training : how models are trained
    trained, retrained : with and without what is to be forgotten
    retraining : what it took; of several requests in a row the sum of one retraining for each
    steps : of several requests in a row a task of each, in their order: to forget is what it alone asks for, retained all that
        is not forgotten by then, and retrained likewise; empty of a single request. The whole task forgets what all ask for
    """

    name: str
    seed: int
    key: str
    classes: tuple[str, ...]
    whole_class: bool
    wrong_labels: bool
    sites: Mapping[str, SiteImages]
    initial: nn.Module
    training: TrainingSettings
    trained: Together
    retrained: nn.Module
    retraining: Cost
    steps: tuple[Task, ...] = ()

    @property
    def aim(self) -> Aim:
        """What is forgotten."""
        return aim_of(self.whole_class, self.wrong_labels)

    @property
    def original(self) -> nn.Module:
        """The deployed model."""
        return self.trained.model

    def pooled(self, kind: str) -> Images:
        """Images of one kind (an attribute of `SiteImages`) of all sites."""
        parts = [cast(Images, getattr(site, kind)) for site in self.sites.values()]
        return torch.cat([x for x, _ in parts]), torch.cat([y_N for _, y_N in parts])

    def federated(self) -> FederatedProblem:
        """The problem as federated methods are given it."""
        parts = {name: Part(site.forget, site.retain, site.given) for name, site in self.sites.items()}
        return FederatedProblem(
            self.original,
            self.initial,
            parts,
            self.whole_class,
            self.trained.updates,
            self.seed,
            self.wrong_labels,
            self.training,
        )

    def central(self) -> Problem:
        """The problem as central methods are given it: all sites' images at one place."""
        forget, retain, unseen = (self.pooled(kind) for kind in ("forget", "retain", "given"))
        return Problem(self.original, forget, retain, unseen, self.whole_class, self.seed, self.wrong_labels)


def make_task(scenario: Scenario, home: Path, progress: Progress) -> Task:
    """The task of a scenario. Its models are trained once, and found again in `home`.

    Raises
    ------
    ConfigError : the scenario asks for what the benchmark has no baselines for, or a request forgets nothing
    ExciseError : its data or its sites cannot be used
    """
    if scenario.model.multi_label or scenario.after:
        raise ConfigError("the benchmark takes requests, of single labels, to a model that the scenario itself trains")

    def counted(done: int, of: int) -> None:
        if done == of or done % math.ceil(of / 100) == 0:  # where it is no terminal each is a line
            progress(f"making sites, {done} of {of}")

    made = make_sites(scenario, home, counted)
    sites = {config.parent.name: _images(config, scenario) for config in made.configs}
    forget = torch.cat([site.forget[1] for site in sites.values()])
    if not len(forget):
        raise ConfigError(f"'{scenario.request.where}' matches no training image of scenario '{scenario.name}'")
    initial = build_model(scenario.model, scenario.seed)
    both = {config.parent.name: _trained_on(config, scenario) for config in made.configs}
    kept = {name: site.retain for name, site in sites.items()}

    def models(name: str, images: Mapping[str, Images], stored: bool) -> Together:
        tell: Progress = lambda text: progress(f"{scenario.name}, seed {scenario.seed}: {name}, {text}")  # noqa: E731
        return trained_or_found(home / "models" / _digest(scenario, images, stored), scenario, initial, images, stored, tell)

    trained, retrained = models("original", both, True), models("retrained", kept, False)
    whole = Task(
        name=scenario.name,
        seed=scenario.seed,
        key=key_of(scenario, home),
        classes=made.classes,
        whole_class=scenario.request.kind is RequestKind.CLASS,
        wrong_labels=scenario.request.kind is RequestKind.LABELS,
        sites=sites,
        initial=initial.eval(),
        training=scenario.training,
        trained=trained,
        retrained=retrained.model,
        retraining=retrained.cost,
    )
    return _in_a_row(whole, made.configs, scenario, models) if len(scenario.requests) > 1 else whole


def _in_a_row(
    whole: Task, configs: Sequence[Path], scenario: Scenario, models: Callable[[str, Mapping[str, Images], bool], Together]
) -> Task:
    """The task with the steps of its requests, of which the last retains what the whole task does."""
    steps, gone = list[Task](), {config.parent.name: set[int]() for config in configs}
    for number, request in enumerate(scenario.requests, 1):
        sites = {config.parent.name: _step(config, request, gone, whole) for config in configs}
        if not any(len(site.forget[1]) for site in sites.values()):
            raise ConfigError(f"'{request.where}' matches no training image that an earlier request has not forgotten")
        last = number == len(scenario.requests)
        kept = {name: site.retain for name, site in sites.items()}
        gold = Together(whole.retrained, (), whole.retraining) if last else models(f"retrained-{number}", kept, False)
        name = f"{whole.name}, request {number}"
        step = replace(whole, name=name, sites=sites, retrained=gold.model, retraining=gold.cost)
        is_class, of_labels = (request.kind is kind for kind in (RequestKind.CLASS, RequestKind.LABELS))
        steps.append(replace(step, whole_class=is_class, wrong_labels=of_labels))
    return replace(whole, retraining=summed([step.retraining for step in steps]), steps=tuple(steps))


def _step(config: Path, request: ForgetRequest, gone: Mapping[str, set[int]], whole: Task) -> SiteImages:
    """A site's images for one of several requests. What `gone` forgot is in none; this request's is put to it."""
    site, before = open_site(config), gone[config.parent.name]
    rows = site.select(request)
    forget, retain = ([i for i in of.tolist() if i not in before] for of in (rows.forget, rows.retain))
    before.update(forget)
    return replace(
        # What nothing was trained on is as in the whole task: no method may see what it is judged by in the end.
        whole.sites[config.parent.name],
        forget=(site.x[torch.tensor(forget, dtype=torch.int64)], site.y_N[forget]),
        retain=(site.x[torch.tensor(retain, dtype=torch.int64)], site.y_N[retain]),
    )


def _images(config: Path, scenario: Scenario) -> SiteImages:
    site = open_site(config)
    rows = site.select(scenario.request)
    tuning, judged = _halves(site, rows.held_out, scenario.seed)
    alike_tuning, alike = _halves(site, rows.excluded, scenario.seed)

    def images(which: Tensor) -> Images:
        return site.x[which], site.y_N[which]

    def patients_of(which: Tensor) -> tuple[str, ...]:
        return tuple(site.scan.rows[i].patient for i in which.tolist())

    return SiteImages(
        images(rows.forget),
        images(rows.retain),
        images(rows.reference),
        images(tuning),
        images(judged),
        images(alike),
        images(alike_tuning),
        patients_of(rows.forget),
        patients_of(rows.retain),
    )


def _halves(site: Site, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows in two random halves, whole patients in either: images of one patient are like each other."""
    whose = [site.scan.rows[i].patient for i in rows.tolist()]
    patients = sorted(set(whose))
    order = torch.randperm(len(patients), generator=Generator().manual_seed(seed)).tolist()
    first = {patients[i] for i in order[: len(order) // 2]}
    chosen = torch.tensor([patient in first for patient in whose], dtype=torch.bool)
    return rows[chosen], rows[~chosen]


def _trained_on(config: Path, scenario: Scenario) -> Images:
    """A site's training images in its own order: whatever is forgotten of them, the model of all of them is the same."""
    site = open_site(config)
    rows = site.select(scenario.request)
    which = torch.cat([rows.forget, rows.retain]).sort().values
    return site.x[which], site.y_N[which]


def trained_or_found(
    folder: Path, scenario: Scenario, initial: nn.Module, images: Mapping[str, Images], stored: bool, progress: Progress
) -> Together:
    """A model trained before and kept in `folder`, or trained now and kept; with what its sites sent, when that is `stored`.

    Raises
    ------
    StorageError : the disk is full
    """
    told = folder / "cost.json"
    if not told.exists():
        made = train_together(initial, images, scenario.training, scenario.seed, progress, stored)
        save_weights(snapshot(made.model), folder / "model.safetensors")
        for number, updates in enumerate(made.updates):
            whole = {f"{site}/{key}": value for site, update in updates.items() for key, value in update.items()}
            save_weights(whole, folder / f"round-{number:04d}.safetensors")
        write_atomically(told, json.dumps(asdict(made.cost)))  # last: what is there is whole
    model = build_model(scenario.model)
    model.load_state_dict(load_weights(folder / "model.safetensors"))
    rounds = list[dict[str, Weights]]()
    for path in sorted(folder.glob("round-*.safetensors")):
        of: dict[str, Weights] = {}
        for key, value in load_weights(path).items():
            whose, _, name = key.partition("/")
            of.setdefault(whose, {})[name] = value
        rounds.append(of)
    return Together(model.eval(), rounds, Cost(**json.loads(told.read_text())))


def _digest(scenario: Scenario, images: Mapping[str, Images], stored: bool) -> str:
    """Of all that a model depends on: scenarios that train the same one share it."""
    told = [MODELS, scenario.seed, scenario.model.model_dump_json(), scenario.training.model_dump_json(), stored, [*images]]
    digest = hashlib.sha256(json.dumps(told).encode())
    for x, y_N in images.values():
        digest.update(x.numpy().tobytes() + y_N.numpy().tobytes())
    return digest.hexdigest()[:16]


def scenario_aim(scenario: Scenario) -> Aim:
    """What is forgotten in the tasks of a scenario; of several requests, what they have in common."""
    kind = scenario.request.kind
    return aim_of(kind is RequestKind.CLASS, kind is RequestKind.LABELS)


def key_of(scenario: Scenario, home: Path) -> str:
    """Name of what is kept of a scenario: another for anything but the seed that its tasks depend on.

    It does not depend on where `home` is, so what is kept can be taken to another machine.
    """
    path = scenario.data.path
    if path and path.is_relative_to(home):
        scenario = scenario.model_copy(update={"data": scenario.data.model_copy(update={"path": path.relative_to(home)})})
    parts = ("data", "partition", "split", "model", "training", "request")
    text = "|".join([str(VERSION), *(getattr(scenario, part).model_dump_json() for part in parts)])
    if scenario.requests:  # another task than a single request that says the same
        text += "|".join(request.to_json() for request in scenario.requests)
    return f"{scenario.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
