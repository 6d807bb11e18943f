"""The events of runs: every kind that is written, and what it carries that a view shows.

| event | written by | when | carries |
|---|---|---|---|
| started | coordinator | a run begins, or goes on | request, seed, release, source |
| status | roster | every site was asked who it is | sites: numbers of images by site |
| joined, returned | roster | a site came later; a site is back | site, counts (not of one that kept its node) |
| left | roster | a site is not connected any more | site |
| awaiting | roster, federation | nothing came for ten seconds | round, number?, sites, since; at the start connected, of |
| refused | roster, federation | an answer was not used, or none came | round, number?, site, code, incident? |
| late, repeated, stray | federation | an answer to nothing that is asked now | round?, number?, site, seconds |
| class_mix | coordinator | the deployed model was scored | distance, log_odds_shift |
| reference | unlearning | sites told losses on unseen images | patients, quantiles |
| unlearned_round | unlearning | of a round | candidate, round, excess, metrics, scores, objective_gradient_norm, refused |
| unlearned | unlearning | a candidate is done | candidate, rounds, kept_round, rule_met_on_reference |
| candidate_failed | coordinator | a candidate's steps diverged | candidate, codes |
| chosen | coordinator | one of several candidates was chosen | candidate, front |
| not_measured | verification | sites refuse a measurement for good | what, codes |
| verified | verification | the revised model was measured | membership_auc, worst_site, resurfacing?, linear_probe? |
| embeddings | embeddings | sites told where images lie in what the models see | explained, sites, points |
| checkpoint_damaged | record | the one before it is taken | phase, rounds |
| failed | app | a run came to nothing | error, message, exit_code |
| finished | coordinator | metrics.json is written | digest |

Every event has ``at`` (ISO 8601 with its zone) and ``event``. `event_of` lets nothing else pass: whoever shows events may
trust their types.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

MOST_TEXT = 20_000
"""Characters of one text in an event; a message of a run that failed has a few hundred."""
MOST, MOST_COUNT = 1e100, 10**15
"""Of a number, so that differences and squares are finite; of a whole number, so that JavaScript reads it as it stands."""

Fits = Callable[[Any], bool]


def parsed(text: str | bytes) -> Any:
    """JSON as it is defined, of text that can be sent on; its numbers may still be too large to show (`is_number`).

    Raises
    ------
    ValueError : it is something else, NaN, or half of a character
    """
    try:
        whole = text.decode() if isinstance(text, bytes) else text
        value = json.loads(whole, parse_constant=_refuse)
        if "\\ud" in whole.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no number")


def is_number(value: Any) -> bool:
    """A number, or None, which stands for one that was not measured."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST)


def is_count(value: Any) -> bool:
    """A whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_COUNT


def is_text(value: Any) -> bool:
    """A text of bearable length."""
    return isinstance(value, str) and len(value) <= MOST_TEXT


def is_time(value: Any) -> bool:
    """A moment with its zone, in ISO 8601."""
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).utcoffset() is not None
    except ValueError:
        return False


def list_of(fits: Fits) -> Fits:
    """A list in which all fit."""
    return lambda value: isinstance(value, list) and all(map(fits, value))


def dict_of(fits: Fits) -> Fits:
    """A dictionary in which all values fit."""
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _with(**fields: Fits) -> Fits:
    return lambda value: isinstance(value, dict) and all(key in value and fits(value[key]) for key, fits in fields.items())


_interval = _with(value=is_number, low=is_number, high=is_number)
_at_a_site = _with(site=is_text, value=is_number, low=is_number, high=is_number)
_texts, _scores, _counts = list_of(is_text), dict_of(is_number), dict_of(dict_of(is_count))

KINDS: Mapping[str, Mapping[str, Fits]] = {
    "started": {},
    "status": {"sites": _counts},
    "joined": {"site": is_text, "counts": dict_of(is_count)},
    "returned": {"site": is_text},
    "left": {"site": is_text},
    "awaiting": {"round": is_text, "sites": _texts, "since": is_time},
    "refused": {"round": is_text, "site": is_text, "code": is_text},
    "late": {"site": is_text, "seconds": is_number},
    "repeated": {"site": is_text, "seconds": is_number},
    "stray": {"site": is_text, "seconds": is_number},
    "class_mix": {"distance": is_number},
    "reference": {"patients": is_count},
    "unlearned_round": {
        "candidate": is_text,
        "round": is_count,
        "excess": is_number,
        "metrics": _scores,
        "objective_gradient_norm": is_number,
        "refused": list_of(_texts),
        "scores": _scores,
    },
    "unlearned": {"candidate": is_text, "rounds": is_count, "kept_round": is_count},
    "candidate_failed": {"candidate": is_text, "codes": _texts},
    "chosen": {"candidate": is_text, "front": _texts},
    "not_measured": {"what": is_text, "codes": _texts},
    "verified": {"membership_auc": _interval, "worst_site": dict_of(_at_a_site)},
    "embeddings": {},
    "checkpoint_damaged": {"phase": is_text, "rounds": is_count},
    "failed": {"error": is_text, "message": is_text, "exit_code": is_count},
    "stopped": {},
    "finished": {"digest": is_text},
}
"""What each kind cannot do without. A kind of a later release is let through: it is shown by its name, and tells nothing."""
OPTIONAL: Mapping[str, Fits] = {
    "request": is_text,
    "seed": is_count,
    "number": is_count,
    "incident": is_text,
    "counts": dict_of(is_count),
}


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event on a line; None when it is none."""
    try:
        event: dict[str, Any] = parsed(line)
    except ValueError:
        return None
    if not _with(at=is_time, event=is_text)(event):
        return None
    if (needed := KINDS.get(event["event"])) is None:
        return event
    optional = {key: fits for key, fits in OPTIONAL.items() if key in event}
    return event if _with(**{**optional, **needed})(event) else None
