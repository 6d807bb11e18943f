"""The benchmark's run: for each scenario the settings of every method are searched, then each runs under each seed.

What is done is kept at once, and found again: who interrupts it goes on where it was. A task is made when something of it is
still to be done.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from torch import nn

from excise.client.unlearning.inference import predict
from excise.simulations.baselines.method import Knob, Settings, knobs_of
from excise.simulations.contest.entry import Entry, Outcome, tried
from excise.simulations.contest.in_a_row import carry_out, on_the_way
from excise.simulations.contest.judge import Objective, accuracies, judge
from excise.simulations.contest.record import Record, keep, path_of, read
from excise.simulations.contest.search import Searched, Tried, judged_seeds, search, unsearched
from excise.simulations.contest.shadows import check_number
from excise.simulations.contest.task import Task, key_of, make_task, scenario_aim
from excise.simulations.contest.traces import traced
from excise.simulations.judging.cost import Cost, shared_ratios
from excise.simulations.scenario import Scenario

NOTHING = Cost()
Progress = Callable[[str], None]
TaskOf = Callable[[int], Task]
"""The task of a seed; made when it is first asked for, which trains two models."""


def compare(
    scenarios: Sequence[Scenario],
    entries: Mapping[str, Entry],
    seeds: int,
    trials: int,
    home: Path,
    progress: Progress,
    shadows: int = 0,
) -> list[Record]:
    """Compare methods on scenarios.

    Settings are searched with the same number of trials for each, on tasks of seeds on which nobody is judged (`search.py`).

    Parameters
    ----------
    seeds : on how many tasks of each scenario methods are judged: 0, 1, …
    trials : of each method's settings; with 1 there is no search, and settings are as they are
    home : where tasks, trials and results are kept
    shadows : how many shadow models each task is given for U-LiRA and RMIA; 0 leaves the two out

    Raises
    ------
    ConfigError : a number of shadow models that does not do
    ExciseError : a scenario's data cannot be used, or the disk is full
    """
    check_number(shadows)
    found = []
    for scenario in scenarios:
        task_of = cache(partial(_task, scenario, home, progress))
        searched = _searched(scenario, task_of, entries, trials, home, progress)
        for seed in judged_seeds(seeds):
            judged = _judged(scenario, seed, task_of, entries, searched, home, progress)
            if shadows and any(one.shadows != shadows for one in judged):
                judged = traced(judged, task_of(seed), scenario, entries, shadows, home, progress)
            found += judged
    return found


def _task(scenario: Scenario, home: Path, progress: Progress, seed: int) -> Task:
    return make_task(scenario.model_copy(update={"seed": seed}), home, progress)


def _searched(
    scenario: Scenario, task_of: TaskOf, entries: Mapping[str, Entry], trials: int, home: Path, progress: Progress
) -> dict[str, Searched]:
    """The settings of each method, by its name."""
    key, aim = key_of(scenario, home), scenario_aim(scenario)
    if trials == 1:
        return {name: unsearched(knobs_of(entry.knobs, aim)) for name, entry in entries.items()}
    objective_of = cache(lambda seed: Objective(task_of(seed)))

    def score(entry: Entry, settings: Settings, seed: int) -> Tried:
        made = tried(partial(carry_out, entry, task_of(seed), settings, seed))
        if isinstance(made, str):
            return Tried(math.inf, math.inf)
        return Tried(objective_of(seed)(made.model), shared_ratios(made.cost, task_of(seed).retraining)["images"])

    found = dict[str, Searched]()
    for name, entry in entries.items():
        knobs = knobs_of(entry.knobs, aim)
        found[name] = search(_study_name(key, entry.name, knobs), knobs, partial(score, entry), home, trials, progress)
    return found


def _study_name(key: str, entry: str, knobs: Mapping[str, Knob]) -> str:
    """Name of a search: another where a method's knobs are others, whose trials cannot be compared. It knows no code."""
    digest = hashlib.sha256(repr(sorted(knobs.items())).encode()).hexdigest()[:8]
    return f"{key} · {entry} · {digest}"


def _judged(
    scenario: Scenario,
    seed: int,
    task_of: TaskOf,
    entries: Mapping[str, Entry],
    searched: Mapping[str, Searched],
    home: Path,
    progress: Progress,
) -> list[Record]:
    """Records of one task; models that are still to be judged are judged side by side. Where none is, no task is made."""
    key = key_of(scenario, home)
    kept = {name: read(path_of(home, key, name, seed)) for name in entries}
    due = [name for name, before in kept.items() if before is None or before.searched != searched[name]]
    if due:
        _make_records(due, task_of(seed), scenario, entries, searched, home, progress)
    done = (read(path_of(home, key, name, seed)) for name in entries)
    return [one for one in done if one is not None]


def _make_records(
    due: Sequence[str],
    task: Task,
    scenario: Scenario,
    entries: Mapping[str, Entry],
    searched: Mapping[str, Searched],
    home: Path,
    progress: Progress,
) -> None:
    """Carry out the methods of these names, judge their models and keep the records."""
    made: dict[str, Outcome] = {}
    failed: dict[str, str] = {}
    for name in due:
        progress(f"{task.name}, seed {task.seed}: {name}")
        outcome = tried(partial(carry_out, entries[name], task, searched[name].settings, task.seed))
        if isinstance(outcome, str):
            failed[name] = outcome
        elif not _is_finite(outcome.model, task):
            failed[name] = "the outputs of its model are not finite"
        else:
            made[name] = outcome
    progress(f"{task.name}, seed {task.seed}: judging")
    scores = _scores(task, scenario, made)
    for name in due:
        keep(_record(task, entries[name], searched[name], made.get(name), failed.get(name, ""), scores), home)


@dataclass(frozen=True)
class _Scores:
    """Of each model, the ``original`` and the ``retrained`` one among them: every metric, and accuracies by site and class."""

    values: Mapping[str, Mapping[str, float]]
    by_site: Mapping[str, Mapping[str, float]]
    by_class: Mapping[str, Mapping[str, float]]


def _scores(task: Task, scenario: Scenario, made: Mapping[str, Outcome]) -> _Scores:
    models = {name: outcome.models for name, outcome in made.items()}
    requests = task.steps or (task,)
    models |= {"original": (task.original,) * len(requests), "retrained": tuple(one.retrained for one in requests)}
    cards = judge(task, {name: outcome.model for name, outcome in made.items()}, scenario.training, task.seed)
    groups = {name: accuracies(task, of[-1]) for name, of in models.items()}
    return _Scores(
        {name: {**cards[name].values, **on_the_way(task, of)} for name, of in models.items()},
        {name: of[0] for name, of in groups.items()},
        {name: of[1] for name, of in groups.items()},
    )


def _record(task: Task, entry: Entry, searched: Searched, made: Outcome | None, failed: str, scores: _Scores) -> Record:
    """What is kept of a method that made a model, or failed."""
    of_models = {"original": "original", "retrained": "retrained", "method": entry.name} if made else {}
    cost = made.cost if made else NOTHING
    return Record(
        key=task.key,
        scenario=task.name,
        seed=task.seed,
        entry=entry.name,
        federated=entry.federated,
        paper=entry.paper,
        searched=searched,
        cost=cost,
        retraining=task.retraining,
        original=scores.values["original"],
        retrained={**scores.values["retrained"], **_cost_values(task.retraining, task.retraining)},
        values={**scores.values[entry.name], **_cost_values(cost, task.retraining)} if made else {},
        failed=failed,
        by_site={of: scores.by_site[model] for of, model in of_models.items()},
        by_class={of: scores.by_class[model] for of, model in of_models.items()},
    )


def _cost_values(cost: Cost, retraining: Cost) -> dict[str, float]:
    """The metrics of cost; of bytes those of all sites together."""
    return {f"{name}_ratio": value for name, value in shared_ratios(cost, retraining).items() if "/" not in name}


def _is_finite(model: nn.Module, task: Task) -> bool:
    return bool(predict(model, task.pooled("tuning")[0]).isfinite().all())
