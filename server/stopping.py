"""When to stop unlearning, and which round's model to keep.

Every round is audited. Rounds in the first half of the schedule are not *settled*: the step is large, and the first of them
shake batch statistics. The first settled round that meets the request's acceptance rule ends the unlearning: more steps would
cost accuracy. Some composition rules then want *recovery* rounds, on retain images alone. The last settled round is kept,
unless one before it was clearly better; small differences between rounds are the chance of a few images, and picking the best
of them picks that chance (docs/adr/0006-choice-on-reference-images.md). Rounds are judged on reference images in the place of
the held-out ones, which judge the result and take no part in this choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

History = Sequence[Mapping[str, Any]]
"""One entry per round: ``excess`` tells by how much it missed the acceptance rule (`Verdict.excess`), None when it was not
judged; ``recovery`` whether it was a recovery round, without the key it was not."""

CLEARLY = 1.0
"""Excess by which a round must be worse to be given up: one whole limit of one clause."""


def next_round(history: History, rounds: int, recovery: int, keep: str) -> str | None:
    """What comes next: "unlearn", "recover", or None when the phase is over.

    Parameters
    ----------
    rounds : most unlearning rounds
    recovery : recovery rounds that follow them
    keep : `UnlearningSettings.keep`
    """
    unlearning = [entry for entry in history if not entry.get("recovery")]
    met = keep == "best" and any(_excess(unlearning[r - 1]) == 0 for r in _settled(unlearning, rounds))
    if len(unlearning) < rounds and not met:
        return "unlearn"
    return "recover" if len(history) - len(unlearning) < recovery else None


def kept_round(history: History, rounds: int, keep: str) -> int:
    """Number, from 1, of the round whose model is kept: the last settled one that is not clearly worse than the best.

    A round that meets the rule is not given up for one that does not, and one that could not be judged is worse than any
    other.

    >>> kept_round([{"excess": 0.1}, {"excess": 9.0}, {"excess": 0.5}, {"excess": 3.0}], 4, "best")
    3
    """
    settled = _settled(history, rounds)
    if keep == "last" or not settled:
        return len(history)
    least = min(_excess(history[r - 1]) for r in settled)
    allowed = least + CLEARLY if least > 0 else 0.0  # what meets the rule is not given up for what does not
    return max(r for r in settled if _excess(history[r - 1]) <= allowed)


def is_settled(number: int, rounds: int) -> bool:
    """Whether round `number`, from 1, lies in the second half of the schedule and may be kept."""
    return number > rounds / 2


def _settled(history: History, rounds: int) -> list[int]:
    """Numbers of the rounds that may be kept: settled ones and recovery rounds."""
    return [r for r, entry in enumerate(history, 1) if is_settled(r, rounds) or entry.get("recovery")]


def _excess(entry: Mapping[str, Any]) -> float:
    excess = entry["excess"]
    return math.inf if excess is None or math.isnan(excess) else excess
