"""The sites of one run: who they are, and the rounds that are held with them.

Nothing here knows what a round is for: `server/training.py` and `server/unlearning.py` say what to ask, and
`server/coordinator.py` in which order.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.serverapp import Grid

from excise.common import messages as m
from excise.common.errors import DataError, NothingToForget, QuorumError
from excise.common.request import ForgetRequest
from excise.common.settings import CompositionSettings
from excise.common.weights import Weights, difference, digest, norm
from excise.server.admission import admit
from excise.server.composition import Update, new_composer
from excise.server.plan import Plan
from excise.server.record import Phase, RunFolder
from excise.server.rounds import RoundResult, run_round
from excise.server.scores import Audit
from excise.server.weighting import SiteWeight

Progress = Callable[[str, int, int, str], None]
"""Called with (phase, rounds done, rounds in all, a short note)."""


class Federation:
    """The sites of one plan on one grid.

    Attributes
    ----------
    nodes : Flower's node id of each site, once `gather` has heard them
    status : what each site said of itself
    """

    def __init__(self, grid: Grid, plan: Plan, folder: RunFolder, stopped: Callable[[], bool] = lambda: False) -> None:
        self.grid, self.plan, self.folder, self.stopped = grid, plan, folder, stopped
        self.nodes: dict[str, int] = {}
        self.status: Mapping[str, m.SiteStatus] = {}

    # ---- who is there -------------------------------------------------------------------------------------------------

    def gather(self) -> None:
        """Wait for the sites and ask each for its name and its numbers of images.

        Raises
        ------
        NothingToForget : no training image at any site matches the request
        QuorumError : too few sites are there, or answer
        DataError : two sites have one name, the sites do not agree on the classes, or nothing would be retained
        """
        nodes = self._wait_for_nodes()
        by_node = {f"node-{node}": node for node in nodes}
        heard: dict[str, m.SiteStatus] = {}
        names: dict[str, int] = {}

        def hear(node: str, status: m.SiteStatus) -> None:
            if status.site in names:
                raise DataError(f"two sites call themselves '{status.site}'; give each its own name in site.toml")
            names[status.site], heard[status.site] = by_node[node], status

        query = m.StatusQuery(request=self.plan.request, parts=self.plan.parts)
        try:
            self.ask("status", lambda _: query, m.SiteStatus, hear, by_node)
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
        self.folder.event("status", sites=self.counts())
        if sum(s.forget for s in self.status.values()) == 0:
            never = sum(s.excluded for s in self.status.values())
            raise NothingToForget(
                f"no training image at any of {len(self.nodes)} sites matches: {self.plan.request.where}\n"
                f"({never} images that were never trained on match.) Nothing was changed; check the predicate."
            )
        for i, part in enumerate(self.plan.parts):
            if sum(s.parts[i] for s in self.status.values() if len(s.parts) > i) == 0:
                raise NothingToForget(f"no training image at any site matches '{part.id}': {part.where}\nNothing was changed.")
        if sum(s.retain for s in self.status.values()) == 0:
            raise DataError("every training image at every site matches the request: nothing would be left of the model")

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

    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of images of each site, as they go into results and events."""
        keys = ("train", "forget", "retain", "reference", "held_out", "excluded", "skipped", "forgotten")
        return {site: {key: int(getattr(status, key)) for key in keys} for site, status in self.status.items()}

    # ---- rounds -------------------------------------------------------------------------------------------------------

    def ask(
        self,
        name: str,
        question: Callable[[str], m.Message],
        reply_type: type[m.R],
        use: Callable[[str, m.R], None] | None = None,
        nodes: Mapping[str, int] | None = None,
    ) -> RoundResult[m.R]:
        """One round of questions, to every site unless `nodes` are given; refusals become events (`server/rounds.py`)."""
        asked = self.nodes if nodes is None else nodes
        try:
            answer = run_round(self.grid, asked, question, reply_type, self.plan.rounds, use, name, self.stopped)
        except QuorumError as error:  # the run ends: what it ended of is told first
            for site, code, incident in zip(error.missing, error.codes, error.incidents, strict=False):
                self.folder.event("refused", round=name, site=site, code=code, incident=incident)
            raise
        for refusal in answer.refused:
            self.folder.event("refused", round=name, site=refusal.site, code=refusal.code, incident=refusal.incident)
        return answer

    def train(
        self,
        name: str,
        phase: Phase,
        weights: Mapping[str, SiteWeight],
        question: Callable[[str], m.Message],
        composition: CompositionSettings,
    ) -> dict[str, Any]:
        """One round of updates from the sites of `weights`, admitted and composed into `phase.weights`.

        Returns
        -------
        What it measured: ``metrics`` (means over sites), ``updates`` (by site), ``ascent`` (by site), ``refused`` and
        ``objective_gradient_norm``.
        """
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
        answer = self.ask(name, question, m.SiteUpdate, use, asked)
        phase.weights = composer.result()
        metrics = _mean_over_sites(per_site, weights)
        steps = metrics.pop("step_sum", math.nan)
        phase.spend(seconds=answer.seconds, passes=passes, bytes_down=answer.bytes_down, bytes_up=answer.bytes_up, rounds=1)
        return {
            "metrics": metrics,
            # What was applied, for each unit of step size: the gradient of the global objective, as the round averaged it.
            "objective_gradient_norm": norm(difference(phase.weights, base)) / steps if steps > 0 else math.nan,
            "updates": per_site,
            "ascent": ascent,
            "refused": [[refusal.site, refusal.code] for refusal in answer.refused],
        }

    def audit(
        self,
        models: Mapping[str, Weights],
        brief: bool = False,
        payer: Phase | None = None,
        parts: Sequence[ForgetRequest] = (),
    ) -> dict[str, Audit]:
        """Score models at every site, all in one round.

        Parameters
        ----------
        models : weights by a name of letters, digits and hyphens
        brief : on fewer images, enough to judge a round (`AuditQuery.brief`)
        payer : the phase that needs it, and bears its cost; without one it only tells people how things
            stand, and how many images of each class there are, for which no model is asked
        parts : requests whose forget images are scored on their own as well
        """
        plan = self.plan
        query = m.AuditQuery(model=plan.model, candidates=dict(models), request=plan.request, parts=tuple(parts), brief=brief)
        answer = self.ask("audit", lambda _: query, m.AuditReply)
        replies = answer.replies
        if payer is not None:
            passes = sum(reply.passes for reply in replies.values())
            payer.spend(seconds=answer.seconds, passes=passes, bytes_down=answer.bytes_down, bytes_up=answer.bytes_up)
        return {
            name: Audit.of({site: reply.of(name) for site, reply in replies.items()}, plan.model.strata, len(parts))
            for name in models
        }

    def probe(self, models: Mapping[str, Weights]) -> Mapping[str, m.ProbeReply]:
        """What a linear probe of each model's features finds at each site, which a request has to ask for."""
        plan = self.plan
        query = m.ProbeQuery(model=plan.model, candidates=dict(models), request=plan.request)
        return self.ask("probe", lambda _: query, m.ProbeReply).replies

    def seed(self, *parts: object) -> int:
        """A seed that follows from the plan's and from what it is for."""
        text = "|".join(map(str, (self.plan.seed, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _mean_over_sites(per_site: Mapping[str, Mapping[str, float]], weights: Mapping[str, SiteWeight]) -> dict[str, float]:
    names = {name for metrics in per_site.values() for name in metrics}
    means = {}
    for name in sorted(names):
        told = [(metrics[name], weights[site].p) for site, metrics in sorted(per_site.items()) if name in metrics]
        means[name] = sum(value * p for value, p in told) / sum(p for _, p in told)
    return means
