"""The unlearning rounds of one candidate, from the deployed model to the model of the round that is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from excise.common import messages as m
from excise.common.class_mix import ClassMix, shifted_losses
from excise.common.errors import DataError, StorageError
from excise.common.metrics import pooled_quantiles
from excise.common.profiles import ALL_CLASSES, losses_of
from excise.common.settings import CompositionSettings, UnlearningSettings
from excise.common.weights import Weights, digest
from excise.server.federation import Federation
from excise.server.plan import Candidate
from excise.server.post import Round
from excise.server.record import Phase
from excise.server.scores import Audit
from excise.server.stopping import is_settled, kept_round, next_round
from excise.server.turns import taking_part
from excise.server.verdict import verdict
from excise.server.weighting import SiteWeight, objective_weights, retain_weights, size_weights


class Reference:
    """The teacher's losses on images it never saw, over all sites, and if need be on retain images.

    Asking for them also brings the teacher to the sites.
    """

    def __init__(self, federation: Federation, teacher: Weights, tried: Sequence[UnlearningSettings], payer: Phase) -> None:
        """Ask every site for what the settings that are tried need, at the cost of `payer`."""
        points = max(settings.quantiles for settings in tried)
        trained = any(settings.target.level == "retain" for settings in tried)
        plan = federation.plan

        def question(_: str) -> m.Question:
            return m.ReferenceQuery(model=plan.model, teacher=teacher, request=plan.request, points=points, trained=trained)

        answer = federation.ask(Round("reference"), question, m.ReferenceReply)
        federation.lacking -= set(answer.used)
        replies = tuple(answer.replies.values())
        passes = sum(reply.passes for reply in replies)
        payer.spend(seconds=answer.seconds, passes=passes, bytes_down=answer.bytes_down, bytes_up=answer.bytes_up)
        # Pooled at once: what a thousand sites told would else be kept as long as the rounds last.
        self._unseen, self._trained = (
            {s.quantiles: _pooled(replies, name, s.quantiles) for s in tried} for name in ("unseen", "trained")
        )
        if told := self._unseen[points]:
            patients = sum(reply.patients.get(f"unseen/{ALL_CLASSES}", 0) for reply in replies)
            rounded = {key: [round(q, 4) for q in quantiles] for key, quantiles in told.items()}
            federation.folder.event("reference", patients=int(patients), quantiles=rounded)

    def unseen(self, points: int, mix: ClassMix | None = None) -> m.Profiles:
        """The pooled losses at `points` evenly spaced levels, ascending, by class and of all; every patient counts once.

        `points` are the quantiles of one of the settings that are tried.

        With `mix` those of each class are what they would be, had the teacher met the classes as often as the retain images
        hold them.

        Raises
        ------
        DataError : no site has enough images
        """
        if told := self._unseen[points]:
            return _shifted(told, mix) if mix else told
        raise DataError(
            "no site has enough reference images to calibrate on: of reference or of held-out images it needs at least its "
            "policy.min_count, and policy.profiles. What helps: more images, or a smaller policy.min_count at the sites, "
            "which needs no restart"
        )

    def trained(self, points: int) -> m.Profiles:
        """The same of retain images.

        Raises
        ------
        DataError : no site has enough of them
        """
        if told := self._trained[points]:
            return told
        raise DataError("no site has enough retain images to compare the forget images with; use level = 'unseen'")


def _pooled(replies: Sequence[m.ReferenceReply], name: str, points: int) -> m.Profiles:
    levels = (np.arange(points) + 0.5) / points
    pooled = {}
    for key in sorted({key for reply in replies for key in reply.profiles if key.startswith(f"{name}/")}):
        told = [(np.array(r.profiles[key]), int(r.patients.get(key, 0))) for r in replies if r.profiles.get(key)]
        if sum(patients for _, patients in told):
            pooled[key.removeprefix(f"{name}/")] = tuple(float(value) for value in pooled_quantiles(told, levels))
    return pooled if ALL_CLASSES in pooled else {}


def _shifted(told: m.Profiles, mix: ClassMix) -> m.Profiles:
    """Losses of every stratum that `mix` knows, each moved by its own shift; the others as they are."""

    def moved(stratum: int) -> tuple[float, ...]:
        losses = torch.tensor(losses_of(stratum, told, mix.multi_label), dtype=torch.float64)
        return tuple(shifted_losses(losses, mix.log_odds_shift(stratum)).tolist())

    return told | {str(s): moved(s) for s in mix.known}


@dataclass(frozen=True)
class Unlearning:
    """What the rounds of one candidate have in common.

    Attributes
    ----------
    teacher : the deployed model
    before : its scores in a brief audit, to judge rounds by; None when no round is judged
    reference : pooled losses for calibrated targets; empty for others
    trained : pooled losses of retain images for `level = "retain"`; empty for others
    progress : called with (rounds done, rounds in all)
    """

    federation: Federation
    candidate: Candidate
    teacher: Weights
    before: Audit | None
    reference: m.Profiles
    trained: m.Profiles
    progress: Callable[[int, int], None]

    def run(self, start: Weights, rounds: int, recovery: int) -> Phase:
        """Unlearn until the acceptance rule is met or the rounds are used up.

        Returns the weights and the number of the kept round, with the history and the cost of every round.

        Parameters
        ----------
        start : where the first round begins
        rounds : most unlearning rounds
        recovery : rounds on retain images alone that follow
        """
        name, folder = self.candidate.phase, self.federation.folder
        keep = self.candidate.unlearning.keep
        phase = folder.load_phase(name) or Phase(start)
        self._keep(phase, rounds)
        while step := next_round(phase.history, rounds, recovery, keep):
            self.progress(phase.rounds, rounds + recovery)
            entry = self._round(phase, recovers=step == "recover")
            phase.history.append({key: entry[key] for key in ("round", "excess", "recovery", "asked")})
            phase.rounds += 1
            folder.save_phase(name, phase, entry)
            self._keep(phase, rounds)
            told = {key: entry[key] for key in ("round", "excess", "metrics", "ascent", "objective_gradient_norm", "refused")}
            folder.event("unlearned_round", candidate=self.candidate.name, **told, scores=_main_scores(entry["pooled"]))
        self.progress(rounds + recovery, rounds + recovery)
        if not phase.history:
            return phase
        kept = folder.load_phase(f"kept-{name}")
        if kept is None or kept.rounds != kept_round(phase.history, rounds, keep):
            raise StorageError(
                f"{folder.path} does not hold the model of the kept round. Delete {name}.* and kept-{name}.* in its "
                "checkpoints and resume the run: it unlearns anew, and keeps the rest"
            )
        excess = phase.history[kept.rounds - 1]["excess"]
        met = None if excess is None else excess == 0
        told = {"rounds": phase.rounds, "kept_round": kept.rounds, "rule_met_on_reference": met}
        folder.event("unlearned", candidate=self.candidate.name, **told)
        return Phase(kept.weights, kept.rounds, folder.rounds_of(name, phase), phase.cost)

    def _keep(self, phase: Phase, rounds: int) -> None:
        """Keep the phase's model when its round is the one to keep. Killed before that, a resumed run does it first."""
        if phase.history and kept_round(phase.history, rounds, self.candidate.unlearning.keep) == phase.rounds:
            self.federation.folder.save_phase(f"kept-{self.candidate.phase}", phase, spare=False)

    def _round(self, phase: Phase, recovers: bool) -> dict[str, Any]:
        """One round and its audit; returns the entry of the history."""
        plan, settings, r, base = self.federation.plan, self.candidate.unlearning, phase.rounds, phase.weights
        weights, status = self._weights(phase, recovers), self.federation.status
        forget_images = sum(s.forget for s in status.values())
        keeping = sum(status[site].retain > 0 for site in weights)
        forgetting = sum(s.forget > 0 for s in status.values()) / len(status)
        teacher_digest = digest(self.teacher)
        self.federation.bring(Round("teacher"), self._teacher_for, m.ReferenceReply)

        def question(site: str) -> m.Question:
            return m.UnlearnInstruction(
                model=plan.model,
                weights=base,
                teacher_digest=teacher_digest,
                request=plan.request,
                settings=settings.at_site(status[site].forget / forget_images, keeping, forgetting),
                a_k=weights[site].a,
                reference=self.reference,
                trained=self.trained,
                # Recovery takes steps of the schedule's middle: at its end they would be zero.
                round_index=settings.local.rounds // 2 if recovers else r,
                seed=self.federation.seed("unlearn", r, site),
            )

        composition = CompositionSettings() if recovers else self.candidate.composition
        entry = self.federation.train(self.candidate.phase, phase, weights, question, composition)
        judged = settings.keep == "best" and (recovers or is_settled(r + 1, settings.local.rounds))
        excess = self._excess(phase, self.before) if judged and self.before else None
        told: dict[str, Any] = {"pooled": {}, "sites": {}, "excess": excess, "recovery": recovers, "asked": sorted(weights)}
        if plan.rounds.watch:
            watched = self.federation.audit({"model": phase.weights})["model"]  # for the report's curves; decides nothing
            told |= {"pooled": watched.pooled, "sites": watched.sites}
        return {"round": r + 1, **entry, **told}

    def _teacher_for(self, _: str) -> m.Question:
        """The deployed model, for a site that was not there when the others got it, or lost it.

        What it says of it comes too late to be pooled.
        """
        plan, points = self.federation.plan, self.candidate.unlearning.quantiles
        return m.ReferenceQuery(model=plan.model, teacher=self.teacher, request=plan.request, points=points)

    def _excess(self, phase: Phase, before: Audit) -> float:
        """By how much the phase's model misses the acceptance rule on reference images (`Verdict.excess`)."""
        audit = self.federation.audit({"model": phase.weights}, brief=True, payer=phase)["model"]
        return verdict({"original": before.choice(), "unlearned": audit.choice()}, self.federation.plan.request).excess

    def _weights(self, phase: Phase, recovers: bool) -> Mapping[str, SiteWeight]:
        settings, status = self.candidate.unlearning, self.federation.status
        forget, retain = ({site: getattr(s, of) for site, s in status.items()} for of in ("forget", "retain"))
        if recovers:
            return retain_weights(retain)
        had = Counter(site for entry in phase.history for site in entry.get("asked", ()))
        there = taking_part(forget, retain, settings.local, had, self.federation.plan.seed, self.federation.roster.away)
        rule = objective_weights if settings.weights == "objective" else size_weights
        weights = rule(*there, settings.psi)
        if settings.psi == 1:  # nobody has anything to do but the sites that forget
            return {site: weight for site, weight in weights.items() if weight.a > 0}
        return weights


def _main_scores(pooled: Mapping[str, float]) -> dict[str, float]:
    keys = ("forget_accuracy", "retain_accuracy", "held_out_accuracy", "membership_auc")
    return {key: round(pooled[key], 4) for key in keys if key in pooled}
