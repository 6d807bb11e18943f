"""A fair search of every method's settings: as many trials for each, one objective, and images on which nobody is judged.

Trials are kept as they end, so a search that was interrupted goes on where it was. A trial runs under several seeds and is
given up after the first of them when it is worse than the median of those before (Optuna's median pruner).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna import Study, Trial
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from excise.simulations.baselines.method import Knob, Settings

DRAWN = 4
"""Trials that are drawn at random, and never given up, before those before are learned from."""
SEEDS = 2
"""Under how many seeds each trial runs."""
JOURNAL = "trials.log"
Progress = Callable[[str], None]
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes
    ----------
    settings : the best, by knob
    loss : their objective, mean over seeds; lower is better; infinite where nothing was searched, or no trial gave a model
    trials, pruned, failed : how many there were, and of these were given up, or gave no model that can be scored
    """

    settings: Settings
    loss: float
    trials: int
    pruned: int
    failed: int


def unsearched(knobs: Mapping[str, Knob], whole_class: bool) -> Searched:
    """The settings that a search would try first, without a search."""
    return Searched({key: knob.at(whole_class) for key, knob in knobs.items()}, math.inf, 0, 0, 0)


def search(
    name: str,
    knobs: Mapping[str, Knob],
    loss_of: Callable[[Settings, int], float],
    home: Path,
    trials: int,
    progress: Progress = lambda _: None,
    whole_class: bool = False,
) -> Searched:
    """Search the settings of one method; the first trial is the knobs' defaults.

    Parameters
    ----------
    name : of the method and its task: trials of the same name in `home` count
    loss_of : the objective of settings under a seed, 0, 1, …; NaN or infinite when there is no model that can be scored
    trials : how many there are to be, with those that were kept
    whole_class : whether that is what is forgotten: some knobs have another default then

    Raises
    ------
    ValueError : `trials` is below 1
    """
    if trials < 1:
        raise ValueError(f"expected 1 trial or more, got {trials}")
    home.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(home / JOURNAL))),
        study_name=name,
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=DRAWN, n_warmup_steps=0),
    )
    wanted = trials if knobs else 1  # without knobs every trial would be the same
    defaults = dict(unsearched(knobs, whole_class).settings)
    while (number := len(_ended(study))) < wanted:
        progress(f"{name}, trial {number + 1} of {wanted}")
        # Seeded by the number of the trial, so that one who goes on after an interruption does not draw what was drawn.
        study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=DRAWN)
        if number == 0:
            study.enqueue_trial(defaults)
        _try(study, study.ask(_distributions(knobs)), loss_of)
    ended = _ended(study)
    best = min((one for one in ended if one.state is TrialState.COMPLETE), key=_value, default=None)
    pruned, failed = (sum(one.state is state for one in ended) for state in (TrialState.PRUNED, TrialState.FAIL))
    return Searched(best.params if best else defaults, _value(best) if best else math.inf, len(ended), pruned, failed)


def _try(study: Study, trial: Trial, loss_of: Callable[[Settings, int], float]) -> None:
    losses = []
    for seed in range(SEEDS):
        losses.append(loss_of(trial.params, seed))
        if not math.isfinite(losses[-1]):
            study.tell(trial, state=TrialState.FAIL)
            return
        trial.report(losses[-1], seed)
        if seed + 1 < SEEDS and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, sum(losses) / len(losses))


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
