"""The life of a forget request: its states, and which follows which.

    drafted → approved → running → candidate → verified → promoted → rolled back
       └─────────┴──────────┴──────────┴───────────┴──→ rejected

*drafted*: the sites that it concerns are asked. *approved*: each of them agreed. *running*: a run carries it out, or can be
resumed. *candidate*: there is a revised model, and its evidence waits for the sites' signatures. *verified*: the evidence is
complete, and a person may promote the model. *promoted*: it is the model to use. A site that withdraws its approval before the
run brings the request back to drafted.
"""

from __future__ import annotations

from enum import StrEnum

from excise.common.errors import RequestError


class State(StrEnum):
    """Where a request stands."""

    DRAFTED = "drafted"
    APPROVED = "approved"
    RUNNING = "running"
    CANDIDATE = "candidate"
    VERIFIED = "verified"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled back"


FOLLOWS: dict[State, tuple[State, ...]] = {
    State.DRAFTED: (State.APPROVED, State.REJECTED),
    State.APPROVED: (State.RUNNING, State.DRAFTED, State.REJECTED),
    State.RUNNING: (State.CANDIDATE, State.REJECTED),
    State.CANDIDATE: (State.VERIFIED, State.REJECTED),
    State.VERIFIED: (State.PROMOTED, State.REJECTED),
    State.PROMOTED: (State.ROLLED_BACK,),
    State.REJECTED: (),
    State.ROLLED_BACK: (),
}


ENDS = (State.PROMOTED, State.REJECTED, State.ROLLED_BACK)
"""States in which a request waits for nobody."""


class IllegalMove(RequestError):
    """A step that does not follow from where the request stands."""


def check_move(request: str, before: State, after: State) -> None:
    """Let a step pass that follows from where the request stands.

    Raises
    ------
    IllegalMove : it does not follow; says what does
    """
    if after not in FOLLOWS[before]:
        told = ", ".join(FOLLOWS[before]) or "nothing"
        raise IllegalMove(f"'{request}' is {before} and cannot become {after}; what can follow is: {told}")
