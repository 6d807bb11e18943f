"""When to stop unlearning, and which round's model to keep.

Every round is audited. Rounds in the first half of the schedule are not *settled*: the step is large, and the first of them
shake batch statistics. The first settled round that meets the request's acceptance rule ends the unlearning: more steps would
cost accuracy. Some composition rules then want *recovery* rounds, on retain images alone. The last settled round is kept,
unless one before it was clearly better; small differences between rounds are the chance of a few images, and picking the best
of them picks that chance (docs/adr/0006-choice-on-reference-images.md). Rounds are judged on reference images, so that the
held-out images, which judge the result, have chosen nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

History = Sequence[Mapping[str, Any]]
"""One entry per round: ``excess`` tells by how much it missed the acceptance rule (`Verdict.excess`), ``recovery`` whether it
was a recovery round; without the key it was not."""

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

    A round that could not be judged counts as worse than any other.

    >>> kept_round([{"excess": 0.1}, {"excess": 9.0}, {"excess": 0.5}, {"excess": 3.0}], 4, "best")
    3
    """
    settled = _settled(history, rounds)
    if keep == "last" or not settled:
        return len(history)
    least = min(_excess(history[r - 1]) for r in settled)
    return max(r for r in settled if _excess(history[r - 1]) <= least + CLEARLY)


def _settled(history: History, rounds: int) -> list[int]:
    """Numbers of the rounds that may be kept: those of the schedule's second half, and recovery rounds."""
    return [r for r, entry in enumerate(history, 1) if r > rounds / 2 or entry.get("recovery")]


def _excess(entry: Mapping[str, Any]) -> float:
    excess = entry["excess"]
    return math.inf if excess is None or math.isnan(excess) else excess
