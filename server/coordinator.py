"""A run from the first question to the verified model.

Status → deployed model → reference → unlearning → retrained → verification.

Every phase keeps a checkpoint after each round (`server/record.py`) and goes on from it. Seeds of sites and rounds are
derived from the plan's seed, so a run that was interrupted ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from flwr.serverapp import Grid

import excise.common
import excise.server
from excise import __version__
from excise.common.class_mix import ClassMix
from excise.common.errors import QuorumError
from excise.common.source import source_digest
from excise.common.weights import Weights, difference, digest, load_weights, save_weights
from excise.server.admission import DIVERGED
from excise.server.candidates import rank
from excise.server.composition import Update, new_composer, recovery_rounds
from excise.server.federation import Federation, Progress
from excise.server.plan import ONLY, ORIGINAL, Candidate, Merge, Plan, check_compositions
from excise.server.record import REVISED, Phase, RunFolder
from excise.server.scores import Audit, told_mix
from excise.server.training import fit
from excise.server.unlearning import Reference, Unlearning
from excise.server.verdict import verdict
from excise.server.verification import verify


class Coordinator:
    """Carries out one plan on one grid, recording into one folder."""

    def __init__(
        self,
        grid: Grid,
        plan: Plan,
        folder: RunFolder,
        progress: Progress = lambda *_: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        self.federation = Federation(grid, plan, folder, stopped)

    def run(self) -> dict[str, Any]:
        """Do everything and return the results, which are also in ``metrics.json``.

        Raises
        ------
        NothingToForget : no training image at any site matches the request
        QuorumError : too few sites answered a round
        DataError : the sites do not agree on the classes, or nothing would be retained
        ConfigError : a composition or its options are unknown, or recovery rounds would have nothing to train on
        StorageError : the run's folder cannot be written
        Interrupted : Ctrl-C
        """
        plan, federation = self.plan, self.federation
        check_compositions(plan)
        self.folder.tidy()
        code = {"release": __version__, "source": source_digest(excise.common, excise.server)}
        self.folder.event("started", request=plan.request.id, seed=plan.seed, **code)
        federation.gather()
        results: dict[str, Any] = {"request": plan.request.id, "seed": plan.seed, "sites": {}}
        original = fit(federation, "original", None, plan.deployed, self.progress)
        before = federation.audit({"original": original.weights})["original"]
        mix = told_mix(before.sites, plan.model.strata, plan.model.multi_label)
        shifts = {str(s): round(mix.log_odds_shift(s), 4) for s in mix.known}
        self.folder.event("class_mix", distance=round(mix.distance(), 4), log_odds_shift=shifts)
        unlearned, audited = self._unlearn(original.weights, mix)
        # Not before: of a thousand sites it is many numbers, which all rounds would keep.
        results["original"] = {**before.as_json(), "cost": original.cost, "digest": digest(original.weights)}
        results |= unlearned
        models = {ORIGINAL: original.weights, "unlearned": load_weights(self.folder.path / REVISED)}
        audits = {ORIGINAL: before, "unlearned": audited}
        if plan.retrain or plan.retrained:
            retrained = fit(federation, "retrained", plan.request, plan.retrained, self.progress)
            audit = federation.audit({"retrained": retrained.weights})["retrained"]
            results["retrained"] = {**audit.as_json(), "cost": retrained.cost}
            models["retrained"], audits["retrained"] = retrained.weights, audit
        results["verification"] = verify(federation, models, audits, results)
        if plan.parts:
            results["requests"] = self._by_request(models)
        results["sites"] = federation.roster.counts()  # with those that came later
        results["commitments"] = federation.roster.commitments()
        results["code"] = federation.roster.code()
        self.folder.write_json("metrics.json", results)
        self.folder.event("finished", digest=results["unlearned"]["digest"])
        return results

    def _unlearn(self, teacher: Weights, mix: ClassMix) -> tuple[dict[str, Any], Audit]:
        """Every candidate, the choice among them, and the revised model in the run's folder; results, and its audit."""
        plan = self.plan
        setup = Phase(teacher)
        reference = Reference(self.federation, teacher, [candidate.unlearning for candidate in plan.tried], setup)
        judges = "best" in {plan.unlearning.keep, *(candidate.unlearning.keep for candidate in plan.tried)}
        before = self.federation.audit({"model": teacher}, brief=True, payer=setup)["model"] if judges else None
        phases: dict[str, Phase] = {}
        for candidate in plan.tried:
            rounds, recovery = candidate.unlearning.local.rounds, recovery_rounds(candidate.composition)
            target, points = candidate.unlearning.target, candidate.unlearning.quantiles
            unseen = reference.unseen(points, mix if target.label_shift else None) if target.kind == "calibrated" else {}
            trained = reference.trained(points) if unseen and target.level == "retain" else {}
            told = (candidate, teacher, before, unseen, trained, self._reporter(candidate.name))
            unlearning = Unlearning(self.federation, *told)
            try:
                phases[candidate.name] = unlearning.run(teacher, rounds, recovery)
            except QuorumError as error:
                if (candidate is plan.tried[-1] and not phases) or not set(error.codes) <= set(DIVERGED):
                    raise
                self.folder.event("candidate_failed", candidate=candidate.name, codes=sorted(set(error.codes)))
        for merge in plan.merges:
            if set(merge.forget + merge.retain) <= set(phases):
                phases[merge.name] = self._merge(merge, phases, teacher, before)

        models = {name: phase.weights for name, phase in phases.items()}
        chosen, standings = ONLY, {}
        if plan.candidates:
            judged = self.federation.audit({ORIGINAL: teacher, **models}, brief=True, payer=setup)
            choosing = {name: audit.choice() for name, audit in judged.items()}
            standings = rank(choosing.pop(ORIGINAL), choosing, plan.request)
            (chosen,) = [name for name, standing in standings.items() if standing.chosen]
        audits = self.federation.audit(models)
        described = {name: self._described(phase, audits[name]) for name, phase in phases.items()}
        revised = phases[chosen].weights
        save_weights(revised, self.folder.path / REVISED, {"request": plan.request.id})
        unlearned = {**described[chosen], "cost": _total_cost(setup, *phases.values())}
        if not plan.candidates:
            return {"unlearned": unlearned}, audits[chosen]
        for name, phase in phases.items():
            save_weights(phase.weights, self.folder.path / "candidates" / f"{name}.safetensors", {"candidate": name})
        ranked = {name: described[name] | asdict(standing) for name, standing in standings.items()}
        self.folder.event("chosen", candidate=chosen, front=[name for name, s in standings.items() if s.on_front])
        return {"unlearned": unlearned | {"candidate": chosen}, "candidates": ranked}, audits[chosen]

    def _by_request(self, models: Mapping[str, Weights]) -> dict[str, Any]:
        """Scores of each model on the forget set of each request, when several were joined; and whether its rule is met.

        None where it could not be measured: sites tell nothing of small sets.
        """
        audits = self.federation.audit(models, parts=self.plan.parts)
        found = {}
        for i, part in enumerate(self.plan.parts):
            results = {name: {"pooled": audit.parts[i], "sites": audit.sites} for name, audit in audits.items()}
            keys = ("forget_images", "forget_accuracy", "membership_auc")
            scores = {name: {key: audit.parts[i][key] for key in keys} for name, audit in audits.items()}
            judged = verdict(results, part)
            found[part.id] = {**scores, "accepted": None if math.isinf(judged.excess) else judged.accepted}
        return found

    def _merge(self, merge: Merge, phases: Mapping[str, Phase], teacher: Weights, before: Audit | None) -> Phase:
        """A candidate out of others, and the recovery rounds that its rule wants."""
        composer = new_composer(merge.composition, teacher)
        for name in (*merge.forget, *merge.retain):
            change = difference(phases[name].weights, teacher)
            composer.add(Update(name, change, 1.0, name in merge.forget))
        candidate = Candidate(name=merge.name, unlearning=self.plan.unlearning)
        recovery = Unlearning(self.federation, candidate, teacher, before, {}, {}, self._reporter(merge.name))
        return recovery.run(composer.result(), 0, composer.recovery_rounds)

    @staticmethod
    def _described(phase: Phase, audit: Audit) -> dict[str, Any]:
        told = {"history": phase.history, "kept_round": phase.rounds, "digest": digest(phase.weights)}
        return {**audit.as_json(), "cost": phase.cost, **told}

    def _reporter(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress("unlearned", done, total, name if self.plan.candidates else "")


def _total_cost(*phases: Phase) -> dict[str, float]:
    """Everything that was spent to arrive at the revised model, candidates that were not chosen included."""
    total = Phase({})
    for phase in phases:
        total.spend(**phase.cost)
    return total.cost
