"""Ours, with each composition rule: the search, the targets and the joint steps at sites, and the server's own rules.

    min_θ  F(θ) = ψ·Σ_k (n_k^f/N_f)·L_k^f(θ) + (1−ψ)·Σ_k (n_k^r/N_r)·L_k^r(θ)

Site k takes joint steps on a_k·L_k^f + (1−a_k)·L_k^r, and the rule composes the updates with the weights p_k
(`server/weighting.py`). All of it are the functions that the apps call; only messages, disks and policies are left out.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from excise.client.unlearning.boundary import boundary_search
from excise.client.unlearning.correction import corrected_overshoot, is_corrected, measured_rows
from excise.client.unlearning.inference import predict
from excise.client.unlearning.labels import boundary_losses, mix_of
from excise.client.unlearning.local import ForgetSet, RetainSet, drawn_rows, unlearn_locally
from excise.client.unlearning.negation import is_step_away, step_away
from excise.client.unlearning.reference import Reference, loss_quantiles
from excise.client.unlearning.targets import make_targets
from excise.common.class_mix import shifted_losses
from excise.common.errors import ConfigError
from excise.common.metrics import pooled_quantiles
from excise.common.settings import CompositionSettings, UnlearningSettings
from excise.common.weights import difference, snapshot
from excise.server.composition import known_rules, new_composer, recovery_rounds
from excise.server.composition.composer import Update
from excise.server.turns import taking_part
from excise.server.weighting import SiteWeight, objective_weights, retain_weights
from excise.simulations.baselines.central.ours import KNOBS, settings_of
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.federated.rounds import Federation
from excise.simulations.baselines.federated.traffic import size_of
from excise.simulations.baselines.method import Images, Settings


@dataclass(frozen=True)
class Searched:
    """A site's forget images, those that are searched, and the teacher's logits along their paths, (T+1, N, C)."""

    images: Images
    logits_TNC: torch.Tensor


class Unlearning:
    """The rounds of one problem, with one rule."""

    def __init__(self, problem: FederatedProblem, settings: UnlearningSettings, rule: CompositionSettings) -> None:
        """Nothing is computed yet.

        Raises
        ------
        ConfigError : targets are calibrated, and no site has images that nothing was trained on
        """
        if settings.target.kind == "calibrated" and not any(len(part.unseen[1]) for part in problem.sites.values()):
            raise ConfigError("calibrated targets need images that nothing was trained on; no site has any")
        self.problem, self.settings, self.rule = problem, settings, rule
        self.federation = Federation(problem, problem.original)
        self.teacher = snapshot(problem.original)
        self.searched = dict[str, Searched]()
        together = torch.cat([part.forget[1] for part in problem.sites.values()])
        self.forgotten = together.unique().tolist() if problem.whole_class else []
        self.mix = mix_of(together, torch.cat([part.retain[1] for part in problem.sites.values()]))

    def run(self) -> Composed:
        """Reference, searches, unlearning rounds, and the recovery rounds that the rule wants."""
        local = self.settings.local
        reference = self.reference() if self.settings.target.kind == "calibrated" else {}
        self.searched = {name: self.search(name, reference) for name in self.problem.forgetting}
        turns = Counter[str]()
        for r in range(local.rounds):
            there = taking_part(self.problem.forget, self.problem.retain, local, turns, self.problem.seed)
            weights = objective_weights(*there, self.settings.psi)
            turns.update(weights.keys())
            forget = {name: self.forget_set(name, found, reference, r, weights) for name, found in self.searched.items()}
            self.round(weights, forget, r, self.rule)
        for _ in range(recovery_rounds(self.rule)):  # steps of the schedule's middle: at its end they would be zero
            self.round(retain_weights(self.problem.retain), {}, local.rounds // 2, CompositionSettings())
        return self.federation.made()

    def reference(self) -> Reference:
        """The teacher's losses on unseen images, pooled over sites by their quantiles, for each forgotten class."""
        points, told, traffic = self.settings.quantiles, {}, self.federation.traffic
        levels = (np.arange(points) + 0.5) / points
        for name, part in self.problem.sites.items():
            if len(part.unseen[1]):
                told[name] = boundary_losses(predict(self.problem.original, part.unseen[0]), part.unseen[1])
                self.federation.passes += len(part.unseen[1])
                traffic.add(name, down=size_of(self.teacher))
        self.federation.rounds += 1
        found = {}
        for c in sorted(self.mix.forget):
            own = {name: losses[self.problem.sites[name].unseen[1] == c] for name, losses in told.items()}
            pooled = own if any(map(len, own.values())) else told
            asked = {name: losses for name, losses in pooled.items() if len(losses)}
            of_sites = {name: (loss_quantiles(losses, points).numpy(), len(losses)) for name, losses in asked.items()}
            for name, (its, _) in of_sites.items():
                traffic.add(name, up=its.nbytes)
            quantiles = pooled_quantiles(list(of_sites.values()), levels)
            shift = self.mix.log_odds_shift(c) if self.settings.target.label_shift else 0.0
            found[c] = shifted_losses(quantiles, shift) if shift else quantiles
        return found

    def search(self, name: str, reference: Reference) -> Searched:
        """The boundary search of a site, which the student has no part in: once is enough."""
        (x, y), generator = self.problem.sites[name].forget, Generator().manual_seed(self.seed(name))
        rows = drawn_rows(y, self.settings.forget_sample, generator)
        largest = self.settings.target.overshoot * max((float(q[-1]) for q in reference.values()), default=math.inf)
        path = boundary_search(self.problem.original, x[rows], y[rows], self.settings.search, generator, largest)
        self.federation.passes += path.passes
        return Searched((x[rows], y[rows]), path.logits_TNC)

    def forget_set(
        self, name: str, searched: Searched, reference: Reference, r: int, weights: Mapping[str, SiteWeight]
    ) -> ForgetSet:
        """A site's forget images with their targets in round `r`."""
        x, y = searched.images
        self.federation.traffic.add(name, down=sum(quantiles.nbytes for quantiles in reference.values()))
        target, overshoot = self.at_site(name, weights).target, None
        if reference and is_corrected(target, r):
            looked = measured_rows(searched.logits_TNC, y, target.looks)
            overshoot = corrected_overshoot(self.federation.model, x[looked], y[looked], target, reference, self.forgotten)
            self.federation.passes += len(looked)
        targets = make_targets(searched.logits_TNC, y, target, reference, self.forgotten, overshoot)
        return ForgetSet(x, targets, distance=mix_of(y, self.problem.sites[name].retain[1]).distance())

    def round(
        self, weights: Mapping[str, SiteWeight], forget: Mapping[str, ForgetSet], r: int, rule: CompositionSettings
    ) -> None:
        """Joint steps at every site that has a weight, and the composition of what they changed."""
        base = snapshot(self.federation.model)
        composer = new_composer(rule, base)
        for name, weight in weights.items():
            student, retain = copy.deepcopy(self.federation.model), self.problem.sites[name].retain
            settings, generator = self.at_site(name, weights), Generator().manual_seed(self.seed(name) * 1_000_003 + r)
            if name in forget and is_step_away(settings, r, forget[name].x):
                scale = settings.negation * weight.a / settings.psi
                result = step_away(student, *self.searched[name].images, scale, settings.local.clip_norm, generator)
            else:
                kept = RetainSet(*retain) if len(retain[1]) else None
                result = unlearn_locally(student, forget.get(name), kept, weight.a, settings.local, r, generator, self.teacher)
            self.federation.passes += result.passes
            update = difference(snapshot(student), base)
            self.federation.traffic.add(name, down=size_of(base), up=size_of(update))
            composer.add(Update(name, update, weight.p, weight.a > 0))
        self.federation.model.load_state_dict(composer.result())
        self.federation.rounds += 1

    def at_site(self, name: str, weights: Mapping[str, SiteWeight]) -> UnlearningSettings:
        """The settings with the site's share of what the sites of a round do together."""
        problem = self.problem
        keeping, forgetting = sum(problem.retain[site] > 0 for site in weights), len(problem.forgetting) / len(problem.sites)
        return self.settings.at_site(problem.forget[name] / sum(problem.forget.values()), keeping, forgetting)

    def seed(self, name: str) -> int:
        """Of what a site draws."""
        return self.problem.seed + 7919 * list(self.problem.sites).index(name)


def _of(rule: str) -> FederatedMethod:
    def run(problem: FederatedProblem, settings: Settings) -> Composed:
        return Unlearning(problem, settings_of(problem.aim, settings), CompositionSettings(rule=rule)).run()

    return FederatedMethod(f"excise, {rule}", run, "this project", KNOBS)


OURS = tuple(_of(rule) for rule in known_rules())
