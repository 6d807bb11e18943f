"""A run from the first question to the scored models: status → deployed model → reference → unlearning → retrained.

Every phase keeps a checkpoint after each round (`server/record.py`) and goes on from it. Seeds of sites and rounds are
derived from the plan's seed, so a run that was interrupted ends with the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from excise.common import messages as m
from excise.common.errors import ConfigError, DataError, NothingToForget, QuorumError, StorageError
from excise.common.metrics import pooled_quantiles
from excise.common.models import build_model
from excise.common.request import ForgetRequest
from excise.common.settings import CompositionSettings
from excise.common.weights import Weights, digest, load_weights, norm, save_weights, snapshot
from excise.server.admission import admit
from excise.server.composition import Update, new_composer
from excise.server.plan import Plan
from excise.server.record import Phase, RunFolder
from excise.server.rounds import RoundResult, run_round
from excise.server.scores import loss_points, on_reference, pooled_scores
from excise.server.stopping import kept_round, next_round
from excise.server.verdict import verdict
from excise.server.weighting import SiteWeight, objective_weights, retain_weights, size_weights

KEPT = "unlearned-kept"
"""Phase whose checkpoint holds the model of the unlearning round that is kept so far."""

Progress = Callable[[str, int, int, str], None]
"""Called with (phase, rounds done, rounds in all, a short note)."""


@dataclass(frozen=True)
class Audit:
    """Scores of one model: pooled, by site, and the loss histogram's points of forget and held-out images.

    `choice` holds the first two with reference images in the place of held-out ones; choices are made on it.
    """

    pooled: dict[str, float]
    sites: dict[str, dict[str, float]]
    losses: dict[str, tuple[list[float], list[float]]]
    choice: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"pooled": self.pooled, "sites": self.sites, "losses": {k: list(v) for k, v in self.losses.items()}}


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
        self.grid, self.plan, self.folder, self.progress, self.stopped = grid, plan, folder, progress, stopped
        self.nodes: dict[str, int] = {}
        self.status: Mapping[str, m.SiteStatus] = {}

    def run(self) -> dict[str, Any]:
        """Do everything and return the results, which are also in ``metrics.json``.

        Raises
        ------
        NothingToForget : no training image at any site matches the request
        QuorumError : too few sites answered a round
        DataError : the sites do not agree on the classes
        StorageError : the run's folder cannot be written
        Interrupted : Ctrl-C
        """
        plan = self.plan
        if (
            new_composer(plan.composition, snapshot(build_model(plan.model))).recovery_rounds
            and not plan.unlearning.local.retain_batch
        ):
            raise ConfigError(
                "recovery rounds train on retain images, but retain_batch is 0; raise it, or choose another composition"
            )
        self.folder.event("started", request=plan.request.id, seed=plan.seed)
        self._ask_status()
        original = self._fit("original", None, plan.deployed)
        results: dict[str, Any] = {"request": plan.request.id, "seed": plan.seed, "sites": self._site_counts()}
        before = self._audit(original.weights)
        results["original"] = {**before.as_json(), "cost": original.cost}
        unlearned = self._unlearn(original.weights, before)
        save_weights(unlearned.weights, self.folder.path / "model.safetensors", {"request": plan.request.id})
        results["unlearned"] = {
            **self._audit(unlearned.weights).as_json(),
            "cost": unlearned.cost,
            "history": unlearned.history,
            "kept_round": kept_round(unlearned.history, plan.unlearning.local.rounds, plan.unlearning.keep),
            "digest": digest(unlearned.weights),
        }
        if plan.retrain or plan.retrained:
            retrained = self._fit("retrained", plan.request, plan.retrained)
            results["retrained"] = {**self._audit(retrained.weights).as_json(), "cost": retrained.cost}
        self.folder.write_json("metrics.json", results)
        self.folder.event("finished", digest=results["unlearned"]["digest"])
        return results

    # ---- who is there -------------------------------------------------------------------------------------------------

    def _ask_status(self) -> None:
        nodes = self._wait_for_nodes()
        by_node = {f"node-{node}": node for node in nodes}
        heard: dict[str, m.SiteStatus] = {}
        names: dict[str, int] = {}

        def hear(node: str, status: m.SiteStatus) -> None:
            if status.site in names:
                raise DataError(f"two sites call themselves '{status.site}'; give each its own name in site.toml")
            names[status.site], heard[status.site] = by_node[node], status

        try:
            self._round("status", by_node, lambda _: m.StatusQuery(request=self.plan.request), m.SiteStatus, hear)
        except QuorumError as error:  # knows the missing sites by their node ids alone
            silent = tuple(sorted(set(self.plan.site_names) - set(heard)))
            known = f"\nHeard from: {', '.join(sorted(heard)) or 'nobody'}." + (
                f" Silent: {', '.join(silent)}." if silent else ""
            )
            raise QuorumError(f"{error}{known}", silent or error.missing) from error
        self.nodes, self.status = dict(sorted(names.items())), dict(sorted(heard.items()))
        classes = {s.classes for s in self.status.values()}
        if len(classes) > 1:
            raise DataError(f"the sites do not agree on the classes: {'; '.join(map(str, sorted(classes)))}")
        self.folder.event("status", sites=self._site_counts())
        if sum(s.forget for s in self.status.values()) == 0:
            never = sum(s.excluded for s in self.status.values())
            raise NothingToForget(
                f"no training image at any of {len(self.nodes)} sites matches: {self.plan.request.where}\n"
                f"({never} images that were never trained on match.) Nothing was changed; check the predicate."
            )

    def _wait_for_nodes(self) -> list[int]:
        """Nodes of the grid, once there are as many as the plan expects."""
        deadline = time.monotonic() + self.plan.rounds.deadline
        while True:
            nodes = sorted(self.grid.get_node_ids())
            if len(nodes) >= self.plan.sites:
                return nodes
            if time.monotonic() > deadline:
                raise QuorumError(f"{len(nodes)} of {self.plan.sites} sites connected; start the others and run again", ())
            time.sleep(0.1)

    def _site_counts(self) -> dict[str, dict[str, int]]:
        keys = ("train", "forget", "retain", "reference", "held_out", "excluded", "skipped")
        return {site: {key: int(getattr(status, key)) for key in keys} for site, status in self.status.items()}

    # ---- ordinary federated averaging ---------------------------------------------------------------------------------

    def _fit(self, name: str, without: ForgetRequest | None, given: Any) -> Phase:
        """Train from scratch, with or without the forget set; or take the weights that are given."""
        plan = self.plan
        if given is not None:
            return Phase(load_weights(given))
        phase = self.folder.load_phase(name) or Phase(snapshot(build_model(plan.model, plan.seed)))
        weights = retain_weights({site: s.retain if without else s.train for site, s in self.status.items()})
        while phase.rounds < plan.training.rounds:
            r = phase.rounds
            self.progress(name, r, plan.training.rounds, "")
            base = phase.weights

            def question(site: str, r: int = r, base: Weights = base) -> m.Message:
                return m.FitInstruction(
                    model=plan.model,
                    weights=base,
                    training=plan.training,
                    round_index=r,
                    seed=self._seed("fit", r, site),  # the same for original and retrained: they differ in data alone
                    without=without,
                )

            entry = self._train_round(
                name, phase, weights, question, CompositionSettings()
            )  # the mean, whatever unlearning has
            phase.history.append({"round": r + 1, "loss": entry["metrics"].get("loss")})
            phase.rounds += 1
            self.folder.save_phase(name, phase)
        self.progress(name, plan.training.rounds, plan.training.rounds, "done")
        return phase

    # ---- unlearning ---------------------------------------------------------------------------------------------------

    def _unlearn(self, teacher: Weights, before: Audit) -> Phase:
        """Unlearn until the acceptance rule is met or the rounds are used up; the weights are the kept round's."""
        plan, local, keep = self.plan, self.plan.unlearning.local, self.plan.unlearning.keep
        phase = self.folder.load_phase("unlearned") or Phase(teacher)
        rule = objective_weights if plan.unlearning.weights == "objective" else size_weights
        counts = ({s: n.forget for s, n in self.status.items()}, {s: n.retain for s, n in self.status.items()})
        weights = rule(*counts, plan.unlearning.psi)
        if plan.unlearning.psi == 1:  # nobody has anything to do but the sites that forget
            weights = {site: weight for site, weight in weights.items() if weight.a > 0}
        recovery = new_composer(plan.composition, teacher).recovery_rounds
        teacher_digest = digest(teacher)
        reference = self._reference(teacher, phase)
        while step := next_round(phase.history, local.rounds, recovery, keep):
            r, recovers = phase.rounds, step == "recover"
            self.progress("unlearned", r, local.rounds + recovery, "")
            base, shares = phase.weights, retain_weights(counts[1]) if recovers else weights

            def question(
                site: str,
                r: int = r,
                base: Weights = base,
                shares: Mapping[str, SiteWeight] = shares,
                recovers: bool = recovers,
            ) -> m.Message:
                return m.UnlearnInstruction(
                    model=plan.model,
                    weights=base,
                    teacher_digest=teacher_digest,
                    request=plan.request,
                    settings=plan.unlearning,
                    a_k=shares[site].a,
                    reference=reference,
                    round_index=local.rounds // 2 if recovers else r,  # recovery takes steps of the schedule's middle
                    seed=self._seed("unlearn", r, site),
                )

            composition = CompositionSettings() if recovers else plan.composition
            entry = self._train_round("unlearned", phase, shares, question, composition)
            audit = self._audit(phase.weights)
            excess = verdict({"original": before.choice, "unlearned": audit.choice}, plan.request).excess
            told = {"pooled": audit.pooled, "sites": audit.sites, "excess": excess, "recovery": recovers}
            phase.history.append({"round": r + 1, **entry, **told})
            phase.rounds += 1
            if (
                kept_round(phase.history, local.rounds, keep) == phase.rounds
            ):  # before the phase itself: killed between the two, the round is done again
                self.folder.save_phase(KEPT, phase)
            self.folder.save_phase("unlearned", phase)
            scores = _main_scores(audit.pooled)
            self.folder.event("unlearned_round", round=r + 1, scores=scores, excess=excess, refused=entry["refused"])
        kept = self.folder.load_phase(KEPT)
        if kept is None or kept.rounds != kept_round(phase.history, local.rounds, keep):
            raise StorageError(f"{self.folder.path} does not hold the model of the kept round; start the run anew")
        met = phase.history[kept.rounds - 1]["excess"] == 0
        self.folder.event("unlearned", rounds=phase.rounds, kept_round=kept.rounds, rule_met_on_reference=met)
        self.progress("unlearned", local.rounds + recovery, local.rounds + recovery, "done")
        return replace(phase, weights=kept.weights)

    def _reference(self, teacher: Weights, phase: Phase) -> tuple[float, ...]:
        """Bring the teacher to the sites, and pool their loss profiles into one; asked again when a run resumes."""
        plan = self.plan

        def question(_: str) -> m.Message:
            return m.ReferenceQuery(model=plan.model, teacher=teacher, request=plan.request, points=plan.unlearning.quantiles)

        answer = self._round("reference", self.nodes, question, m.ReferenceReply)
        if phase.rounds == 0:
            passes = sum(reply.passes for reply in answer.replies.values())
            phase.spend(seconds=answer.seconds, passes=passes, bytes_down=answer.bytes_down, bytes_up=answer.bytes_up)
        if plan.unlearning.target.kind != "calibrated":
            return ()
        told = [(np.array(reply.profile), reply.patients) for reply in answer.replies.values()]
        if not sum(patients for _, patients in told):
            raise DataError("no site has enough reference images to calibrate on; raise split.reference or use 'nearest'")
        levels = (np.arange(plan.unlearning.quantiles) + 0.5) / plan.unlearning.quantiles
        pooled = tuple(float(value) for value in pooled_quantiles(told, levels))
        self.folder.event("reference", patients=sum(patients for _, patients in told), quantiles=[round(q, 4) for q in pooled])
        return pooled

    # ---- rounds -------------------------------------------------------------------------------------------------------

    def _train_round(
        self,
        name: str,
        phase: Phase,
        weights: Mapping[str, SiteWeight],
        question: Callable[[str], m.Message],
        composition: CompositionSettings,
    ) -> dict[str, Any]:
        """One round of updates, admitted and composed into `phase.weights`; returns what it measured."""
        base, base_digest = phase.weights, digest(phase.weights)
        composer = new_composer(composition, base)
        per_site: dict[str, dict[str, float]] = {}
        passes = 0
        ascent: dict[str, list[float]] = {}

        def use(site: str, update: m.SiteUpdate) -> None:
            nonlocal passes
            admit(update, base, base_digest, self.plan.rounds.norm_bound)
            composer.add(Update(site, update.delta, weights[site].p, weights[site].a > 0))
            per_site[site] = {**update.metrics, "norm": norm(update.delta), "seconds": update.seconds}
            passes += update.passes
            if update.ascent:
                ascent[site] = list(update.ascent)

        asked = {site: node for site, node in self.nodes.items() if site in weights}
        answer = self._round(name, asked, question, m.SiteUpdate, use)
        phase.weights = composer.result()
        phase.spend(seconds=answer.seconds, passes=passes, bytes_down=answer.bytes_down, bytes_up=answer.bytes_up, rounds=1)
        return {
            "metrics": _mean_over_sites(per_site, weights),
            "updates": per_site,
            "ascent": ascent,
            "refused": [[refusal.site, refusal.code] for refusal in answer.refused],
        }

    def _audit(self, weights: Weights) -> Audit:
        plan = self.plan
        query = m.AuditQuery(model=plan.model, weights=weights, request=plan.request)
        replies = self._round("audit", self.nodes, lambda _: query, m.AuditReply).replies
        classes = plan.model.classes
        choosing = {site: on_reference(reply) for site, reply in replies.items()}
        return Audit(
            pooled=pooled_scores(replies, classes),
            sites=_by_site(replies),
            losses={side: loss_points(replies, side, classes) for side in ("forget", "held_out")},
            choice={"pooled": pooled_scores(choosing, classes), "sites": _by_site(choosing)},
        )

    def _round(
        self,
        name: str,
        nodes: Mapping[str, int],
        question: Callable[[str], m.Message],
        reply_type: type[m.R],
        use: Callable[[str, m.R], None] | None = None,
    ) -> RoundResult[m.R]:
        answer = run_round(self.grid, nodes, question, reply_type, self.plan.rounds, use, name, self.stopped)
        for refusal in answer.refused:
            self.folder.event("refused", round=name, site=refusal.site, code=refusal.code, incident=refusal.incident)
        return answer

    def _seed(self, *parts: object) -> int:
        text = "|".join(map(str, (self.plan.seed, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _mean_over_sites(per_site: Mapping[str, Mapping[str, float]], weights: Mapping[str, SiteWeight]) -> dict[str, float]:
    names = {name for metrics in per_site.values() for name in metrics}
    means = {}
    for name in sorted(names):
        told = [(metrics[name], weights[site].p) for site, metrics in sorted(per_site.items()) if name in metrics]
        means[name] = sum(value * p for value, p in told) / sum(p for _, p in told)
    return means


def _by_site(replies: Mapping[str, m.AuditReply]) -> dict[str, dict[str, float]]:
    return {site: reply.metrics for site, reply in replies.items()}


def _main_scores(pooled: Mapping[str, float]) -> dict[str, float]:
    keys = ("forget_accuracy", "retain_accuracy", "held_out_accuracy", "membership_auc")
    return {key: round(pooled[key], 4) for key in keys}
