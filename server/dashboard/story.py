"""What the events of one run tell, event after event: nothing is kept of them but what a view shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from excise.server.dashboard.kinds import KINDS

Event = dict[str, Any]
SCORES = ("forget_accuracy", "retain_accuracy", "held_out_accuracy", "membership_auc")
CONVERGENCE = ("gradient_norm", "crossing_rate", "forget_loss", "retain_loss")
"""Means over the sites of a round, beside the norm of the global objective's gradient."""

SITES, TRAINING, REFERENCE, UNLEARNING, AUDIT, RETRAINING, VERIFICATION, FINISHED, FAILED = (
    "asking the sites",
    "training",
    "reference",
    "unlearning",
    "audit",
    "retraining",
    "verification",
    "finished",
    "failed",
)
"""Phases of a run, in their order; *training* is what makes the deployed model where none is given."""
_OF_ROUND = {"status": SITES, "original": TRAINING, "reference": REFERENCE, "teacher": UNLEARNING, "retrained": RETRAINING}


@dataclass
class Told:
    """What was heard of one site.

    Attributes
    ----------
    counts : its numbers of images, as it told them; None when it was never heard
    here : whether it is connected, as far as the run looked
    last : the latest that became of a question to it: {"what", "round", "number", "code", "at"}; None before
    refused : how often, by code
    late : answers that came too late, twice or unasked
    """

    counts: dict[str, int] | None = None
    here: bool = True
    last: Event | None = None
    refused: Counter[str] = field(default_factory=Counter)
    late: int = 0


@dataclass
class Story:
    """One run so far.

    Attributes
    ----------
    state : "not started", "running", "stopped", "failed" or "finished"; a run whose process died is still "running" here
    attempts : how often it began or went on
    phase, number : what is done now, and the round of it, 0 when that is not told
    candidate : whose rounds they are, when it unlearns
    rounds : by candidate and by number of the round
    done : by candidate that is done, its ``rounds`` and ``kept_round``
    lost : by candidate whose steps diverged, the codes
    waits : who is awaited and since when, as long as nothing came since
    unknown : events of kinds that this release does not know, by kind
    """

    request: str = ""
    seed: int | None = None
    state: str = "not started"
    attempts: int = 0
    started_at: str | None = None
    last_at: str | None = None
    last: str = ""
    phase: str = ""
    number: int = 0
    candidate: str = ""
    sites: dict[str, Told] = field(default_factory=dict)
    waits: Event | None = None
    rounds: dict[str, dict[int, Event]] = field(default_factory=dict)
    done: dict[str, Event] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)
    chosen: str = ""
    front: list[str] | None = None
    verified: Event | None = None
    not_measured: dict[str, list[str]] = field(default_factory=dict)
    damaged: list[Event] = field(default_factory=list)
    failure: Event | None = None
    digest: str = ""
    unknown: Counter[str] = field(default_factory=Counter)

    def take(self, event: Event) -> None:
        """Take in one more event, which `kinds.event_of` let through."""
        kind = event["event"]
        self.started_at = self.started_at or event["at"]
        self.last_at, self.last = event["at"], kind
        self.waits = None
        if kind not in KINDS:
            self.unknown[kind] += 1
        elif tell := getattr(self, f"_{kind}", None):
            tell(event)

    # ---- the run ------------------------------------------------------------------------------------------------------

    def _started(self, event: Event) -> None:
        self.request, self.seed = event.get("request", self.request), event.get("seed", self.seed)
        self.attempts += 1
        self.state, self.failure, self.phase, self.number = "running", None, SITES, 0

    def _class_mix(self, event: Event) -> None:
        self.phase, self.number = REFERENCE, 0

    def _reference(self, event: Event) -> None:
        self.phase, self.number = UNLEARNING, 0

    def _failed(self, event: Event) -> None:
        self.state, self.phase = "failed", FAILED
        self.failure = {key: event[key] for key in ("at", "error", "message", "exit_code")}

    def _stopped(self, event: Event) -> None:
        self.state = "stopped"

    def _finished(self, event: Event) -> None:
        self.state, self.phase, self.digest = "finished", FINISHED, event["digest"]

    def _checkpoint_damaged(self, event: Event) -> None:
        self.damaged.append({key: event[key] for key in ("at", "phase", "rounds")})

    # ---- the sites ----------------------------------------------------------------------------------------------------

    def _site(self, name: str) -> Told:
        return self.sites.setdefault(name, Told())

    def _status(self, event: Event) -> None:
        self.phase, self.number = TRAINING, 0
        for name, counts in event["sites"].items():
            told = self._site(name)
            told.counts, told.here = counts, True
            told.last = {"what": "answered", "round": "status", "number": 0, "code": "", "at": event["at"]}

    def _joined(self, event: Event) -> None:
        told = self._site(event["site"])
        told.here, told.counts = True, event.get("counts", told.counts)
        told.last = {"what": "answered", "round": "status", "number": 0, "code": "", "at": event["at"]}

    def _returned(self, event: Event) -> None:
        told = self._site(event["site"])
        told.here, told.counts = True, event.get("counts", told.counts)

    def _left(self, event: Event) -> None:
        self._site(event["site"]).here = False

    def _awaiting(self, event: Event) -> None:
        number = event.get("number", 0)
        self.waits = {"sites": event["sites"], "since": event["since"], "round": event["round"], "number": number}
        self._in_round(event["round"], number)

    def _refused(self, event: Event) -> None:
        told, code = self._site(event["site"]), event["code"]
        told.refused[code] += 1
        told.last = {
            "what": "silent" if code == "no_answer" else "refused",
            "round": event["round"],
            "number": event.get("number", 0),
            "code": code,
            "incident": event.get("incident", ""),
            "at": event["at"],
        }
        self._in_round(event["round"], event.get("number", 0))

    def _late(self, event: Event) -> None:
        if event["site"]:  # else nobody knows whose it was
            self._site(event["site"]).late += 1

    _repeated = _stray = _late

    def _in_round(self, name: str, number: int) -> None:
        unlearns = name == "unlearned" or name.startswith("unlearned-")
        later = VERIFICATION if name == "probe" or name.startswith("resurfaced-") else self.phase
        self.phase, self.number = (UNLEARNING if unlearns else _OF_ROUND.get(name, later)), number
        if unlearns:
            self.candidate = name.removeprefix("unlearned-")

    # ---- unlearning ---------------------------------------------------------------------------------------------------

    def _unlearned_round(self, event: Event) -> None:
        name, number = event["candidate"], event["round"]
        known = self.rounds.setdefault(name, {})
        for later in [n for n in known if n >= number]:  # its checkpoint was lost: what followed from it is held again
            del known[later]
        known[number] = {
            "at": event["at"],
            "excess": event["excess"],
            "objective_gradient_norm": event["objective_gradient_norm"],
            "refused": [pair[0] for pair in event["refused"] if pair],
            **{key: event["scores"].get(key) for key in SCORES},
            **{key: event["metrics"].get(key) for key in CONVERGENCE},
        }
        self.done.pop(name, None)
        self.phase, self.candidate, self.number = UNLEARNING, name, number

    def _unlearned(self, event: Event) -> None:
        self.done[event["candidate"]] = {key: event[key] for key in ("rounds", "kept_round")}
        self.phase, self.candidate, self.number = AUDIT, event["candidate"], event["rounds"]

    def _candidate_failed(self, event: Event) -> None:
        self.lost[event["candidate"]] = event["codes"]

    def _chosen(self, event: Event) -> None:
        self.chosen, self.front, self.phase, self.number = event["candidate"], event["front"], AUDIT, 0

    def _not_measured(self, event: Event) -> None:
        self.not_measured[event["what"]] = event["codes"]

    def _verified(self, event: Event) -> None:
        self.verified = {key: event[key] for key in ("membership_auc", "worst_site")}
        self.phase, self.number = VERIFICATION, 0
