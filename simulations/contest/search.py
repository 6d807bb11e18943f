"""A fair search of every method's settings: as many trials for each, one objective, and tasks on which nobody is judged.

Trials are kept as they end, so a search that was interrupted goes on where it was. A trial runs under several seeds and is
given up after the first of them when it is worse than the median of those before (Optuna's median pruner), or costs too much.

Unlearning that is no cheaper than retraining is of no use. Settings within `BUDGET` are chosen before all that cost more; of a
method that has none there, the best are chosen whatever they cost.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import optuna
from optuna import Study, Trial
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from excise.simulations.baselines.method import Knob, Settings

DRAWN = 4
"""Trials that are drawn at random, and never given up, before those before are learned from."""
SEEDS = (5, 6, 7)
"""Of the tasks on which each trial runs: several, for what suits one draw of a few forget images is mostly luck."""
BUDGET = 1 / 8
"""Most that unlearning may cost, as a share of what retraining takes."""
JOURNAL = "trials.log"
Progress = Callable[[str], None]
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Tried(NamedTuple):
    """Settings that were tried under one seed.

    Attributes
    ----------
    loss : the objective; NaN or infinite when there is no model that can be scored
    cost : images sent through models, ÷ those of retraining
    """

    loss: float
    cost: float


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes
    ----------
    settings : the best, by knob
    loss : their objective, mean over seeds; lower is better; infinite where nothing was searched, or no trial gave a model
    trials, pruned, failed : how many there were, and of these were given up, or gave no model that can be scored
    over : how many of those that came to the end cost more than `BUDGET`
    """

    settings: Settings
    loss: float
    trials: int
    pruned: int
    failed: int
    over: int = 0


def judged_seeds(number: int) -> list[int]:
    """The first so many seeds, from 0, on whose tasks nothing is searched."""
    return list(islice((seed for seed in count() if seed not in SEEDS), number))


def unsearched(knobs: Mapping[str, Knob]) -> Searched:
    """The settings that a search would try first, without a search."""
    return Searched({key: knob.default for key, knob in knobs.items()}, math.inf, 0, 0, 0)


def search(
    name: str,
    knobs: Mapping[str, Knob],
    score_of: Callable[[Settings, int], Tried],
    home: Path,
    trials: int,
    progress: Progress = lambda _: None,
) -> Searched:
    """Search the settings of one method; the first trial is the knobs' defaults.

    Parameters
    ----------
    name : of the method and its task: trials of the same name in `home` count
    score_of : how settings do under a seed, one of `SEEDS`
    trials : how many there are to be, with those that were kept; none where there is no knob

    Raises
    ------
    ValueError : `trials` is below 1
    """
    if trials < 1:
        raise ValueError(f"expected 1 trial or more, got {trials}")
    if not knobs:
        return unsearched(knobs)
    home.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(home / JOURNAL))),
        study_name=name,
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=DRAWN, n_warmup_steps=0),
    )
    defaults = dict(unsearched(knobs).settings)
    while (number := len(_ended(study))) < trials:
        progress(f"{name}, trial {number + 1} of {trials}")
        study.sampler = optuna.samplers.TPESampler(seed=_seed(name, number), n_startup_trials=DRAWN)
        if number == 0:
            study.enqueue_trial(defaults)
        _try(study, study.ask(_distributions(knobs)), score_of)
    ended = _ended(study)
    whole = [one for one in ended if one.state is TrialState.COMPLETE]
    over = [one for one in whole if _is_over(one)]
    best = min([one for one in whole if one not in over] or over, key=_value, default=None)
    pruned, failed = (sum(one.state is state for one in ended) for state in (TrialState.PRUNED, TrialState.FAIL))
    return Searched(
        best.params if best else defaults, _value(best) if best else math.inf, len(ended), pruned, failed, len(over)
    )


def _seed(name: str, number: int) -> int:
    """Of a trial's draws.

    Another for each trial, so that who goes on after an interruption does not draw what was drawn; and for each search, so
    that no method is lucky in one scenario after another.
    """
    return int.from_bytes(hashlib.sha256(f"{name}, trial {number}".encode()).digest()[:4])


def _try(study: Study, trial: Trial, score_of: Callable[[Settings, int], Tried]) -> None:
    scores, state = list[Tried](), TrialState.COMPLETE
    for number, seed in enumerate(SEEDS, 1):
        scores.append(score_of(trial.params, seed))
        if not math.isfinite(scores[-1].loss):
            state = TrialState.FAIL
            break
        if number < len(SEEDS) and _given_up(study, trial, scores[-1], number):
            state = TrialState.PRUNED
            break
    trial.set_constraint("images", fmean(score.cost for score in scores) - BUDGET)  # above 0 it is over
    study.tell(trial, fmean(score.loss for score in scores) if state is TrialState.COMPLETE else None, state)


def _given_up(study: Study, trial: Trial, score: Tried, number: int) -> bool:
    """Whether it cannot be chosen any more, or is bad beside others. One over budget is compared with none that is not."""
    if score.cost > BUDGET:
        return any(one.state is TrialState.COMPLETE and not _is_over(one) for one in study.trials)
    trial.report(score.loss, number)
    return trial.should_prune()


def _is_over(trial: FrozenTrial) -> bool:
    return max(trial.constraints.values()) > 0


def _ended(study: Study) -> list[FrozenTrial]:
    """Trials that came to an end; one that was interrupted is none, and is tried again."""
    return [one for one in study.trials if one.state.is_finished()]


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None  # it is complete
    return trial.value


def _distributions(knobs: Mapping[str, Knob]) -> dict[str, BaseDistribution]:
    return {
        name: IntDistribution(int(knob.low), int(knob.high), log=knob.log)
        if knob.whole
        else FloatDistribution(knob.low, knob.high, log=knob.log)
        for name, knob in knobs.items()
    }
