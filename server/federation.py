"""The sites of one run: who they are, and the rounds that are held with them.

Nothing here knows what a round is for: `server/training.py` and `server/unlearning.py` say what to ask, and
`server/coordinator.py` in which order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid

from excise.common import messages as m
from excise.common.embedding import FAULTS
from excise.common.errors import QuorumError, SiteError
from excise.common.request import ForgetRequest
from excise.common.settings import CompositionSettings, RoundSettings
from excise.common.weights import Weights, difference, digest, norm
from excise.server.admission import CODES, admit
from excise.server.composition import Update, new_composer
from excise.server.plan import Plan
from excise.server.post import LATE, Misplaced, Post, Round
from excise.server.record import Phase, RunFolder
from excise.server.roster import Roster
from excise.server.rounds import MALFORMED, NO_ANSWER, Refusal, RoundResult, run_round
from excise.server.scores import Audit
from excise.server.vigil import Awaiting
from excise.server.weighting import SiteWeight

Progress = Callable[[str, int, int, str], None]
"""Called with (phase, rounds done, rounds in all, a short note)."""
ANY = 1e-9
"""Quorum of a round for which one answer is enough."""
TOLD = (*dict.fromkeys((*CODES, *FAULTS)), MALFORMED)
"""Codes that a site is told of its answer; the others are its own, or of an answer that never came."""


class Federation:
    """The sites of one plan on one grid.

    Attributes
    ----------
    roster : the sites, once `gather` has heard them, and who of them is there
    lacking : sites that have not got the deployed model: they came later, or lost it since they got it
    """

    def __init__(self, grid: Grid, plan: Plan, folder: RunFolder, stopped: Callable[[], bool] = lambda: False) -> None:
        self.plan, self.folder, self.stopped = plan, folder, stopped
        self.lacking: set[str] = set()
        self.roster = Roster(grid, plan, folder.event, self._ask_status, self.lacking.add, stopped)
        self._post = Post(grid, self._misplaced)
        self._owed: dict[str, tuple[str, Round]] = {}  # by site, why its last answer was not used, until it has been told

    @property
    def status(self) -> Mapping[str, m.SiteStatus]:
        """What each site said of itself."""
        return self.roster.status

    def gather(self) -> None:
        """Wait for the sites and hear who they are; see `Roster.gather` for what it raises."""
        self.roster.gather()

    # ---- rounds -------------------------------------------------------------------------------------------------------

    def ask(
        self,
        round_: Round,
        question: Callable[[str], m.Question],
        reply_type: type[m.R],
        use: Callable[[str, m.R], None] | None = None,
        sites: Iterable[str] | None = None,
    ) -> RoundResult[m.R]:
        """One round of questions, to every site unless `sites` are given; what is not used becomes an event."""
        awaiting = self._awaiting(round_)
        try:
            nodes = self.roster.present(self.roster.nodes if sites is None else sites, awaiting)
        except QuorumError as error:
            self._refused(round_, (Refusal(site, NO_ANSWER) for site in error.missing), {})
            raise
        return self._hold(round_, nodes, question, reply_type, use, self.plan.rounds, awaiting)

    def ask_willing(
        self,
        round_: Round,
        question: Callable[[str], m.Question],
        reply_type: type[m.R],
        use: Callable[[str, m.R], None],
        sites: Iterable[str] | None = None,
    ) -> RoundResult[m.R]:
        """One round of what a run can do without: whoever is there is asked, nobody is waited for to come back.

        Raises
        ------
        QuorumError : no answer could be used
        """
        there = {site: self.roster.nodes[site] for site in (self.roster.nodes if sites is None else sites)}
        nodes = {site: None if site in self.roster.away else node for site, node in there.items()}
        settings = self.plan.rounds.model_copy(update={"quorum": ANY})
        return self._hold(round_, nodes, question, reply_type, use, settings, self._awaiting(round_))

    def bring(self, round_: Round, question: Callable[[str], m.Question], reply_type: type[m.Message]) -> None:
        """Ask those sites that lack the deployed model, to bring it to them; whether they take it or not, the run goes on."""
        there = self.lacking & (self.roster.nodes.keys() - self.roster.away)
        self.lacking -= there  # who still has none says so in the next round
        if there:
            nodes = {site: self.roster.nodes[site] for site in there}
            with suppress(QuorumError):
                self._hold(round_, nodes, question, reply_type, None, self.plan.rounds, self._awaiting(round_))

    def _ask_status(
        self, nodes: Mapping[str, int], use: Callable[[str, m.SiteStatus], None], limit: float | None
    ) -> RoundResult[m.SiteStatus]:
        """Ask nodes, by a name for each, for their status, for at most `limit` seconds."""
        round_, query = Round("status"), m.StatusQuery(request=self.plan.request, parts=self.plan.parts)
        settings = self.plan.rounds
        if limit is not None and limit < settings.deadline:
            settings = settings.model_copy(update={"deadline": limit})

        def awaiting(silent: list[str], since: str) -> None:
            self._awaiting(round_)(self.roster.missing or silent, since)

        return self._hold(round_, nodes, lambda _: query, m.SiteStatus, use, settings, awaiting)

    def _hold(
        self,
        round_: Round,
        nodes: Mapping[str, int | None],
        question: Callable[[str], m.Question],
        reply_type: type[m.R],
        use: Callable[[str, m.R], None] | None,
        settings: RoundSettings,
        awaiting: Awaiting,
    ) -> RoundResult[m.R]:
        carried: dict[str, tuple[str, Round]] = {}

        def telling(site: str) -> m.Message:
            if site not in self._owed:
                return question(site)
            carried[site] = code, of = self._owed[site]
            return replace(question(site), refused=code, refused_round=str(of))

        try:
            answer = run_round(self._post, nodes, telling, reply_type, settings, use, round_, self.stopped, awaiting)
        except QuorumError as error:  # the run ends: what it ended of is told first
            self._refused(round_, map(Refusal, error.missing, error.codes, error.incidents), carried)
            raise
        for site in answer.used:
            self._told(site, carried)
        self._refused(round_, answer.refused, carried)
        return answer

    def _told(self, site: str, carried: Mapping[str, tuple[str, Round]]) -> None:
        """A site has answered, so it has been told what its question carried."""
        if site in carried and self._owed.get(site) == carried[site]:
            del self._owed[site]

    def _refused(self, round_: Round, refused: Iterable[Refusal], carried: Mapping[str, tuple[str, Round]]) -> None:
        for refusal in refused:
            self.folder.event("refused", **round_.as_json(), site=refusal.site, code=refusal.code, incident=refusal.incident)
            if refusal.code != NO_ANSWER:
                self._told(refusal.site, carried)
            if refusal.code in TOLD:
                self._owed[refusal.site] = refusal.code, round_
            if refusal.code == SiteError.TEACHER_MISSING:
                self.lacking.add(refusal.site)

    def _awaiting(self, round_: Round) -> Awaiting:
        return lambda sites, since: self.folder.event("awaiting", **round_.as_json(), sites=sites, since=since)

    def _misplaced(self, reply: Misplaced) -> None:
        of = reply.round.as_json() if reply.round else {}
        self.folder.event(reply.kind, **of, site=reply.site, seconds=round(reply.seconds, 1))
        if reply.kind == LATE and reply.round:
            self._owed[reply.site] = LATE, reply.round

    def train(
        self,
        name: str,
        phase: Phase,
        weights: Mapping[str, SiteWeight],
        question: Callable[[str], m.Question],
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

        asked = [site for site in self.roster.nodes if site in weights]
        answer = self.ask(Round(name, phase.rounds + 1), question, m.SiteUpdate, use, asked)
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
        told: dict[str, dict[str, m.ModelAudit]] = {name: {} for name in models}
        passes = 0

        def use(site: str, reply: m.AuditReply) -> None:
            nonlocal passes
            passes += reply.passes
            for name, of in told.items():
                of[site] = reply.of(name)

        answer = self.ask(Round("audit"), lambda _: query, m.AuditReply, use)
        if payer is not None:
            payer.spend(seconds=answer.seconds, passes=passes, bytes_down=answer.bytes_down, bytes_up=answer.bytes_up)
        return {name: Audit.of(dict(sorted(of.items())), plan.model.strata, len(parts)) for name, of in told.items()}

    def probe(self, models: Mapping[str, Weights]) -> Mapping[str, m.ProbeReply]:
        """What a linear probe of each model's features finds at each site, which a request has to ask for."""
        plan = self.plan
        query = m.ProbeQuery(model=plan.model, candidates=dict(models), request=plan.request)
        return self.ask(Round("probe"), lambda _: query, m.ProbeReply).replies

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
