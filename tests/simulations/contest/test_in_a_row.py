"""Several requests one after another: what each step is given, what it costs, and what is told of the way."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.common.errors import ConfigError
from excise.common.weights import digest, snapshot
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.method import Made, Method, Problem, Settings
from excise.simulations.contest.entry import entry_of
from excise.simulations.contest.in_a_row import carry_out, on_the_way
from excise.simulations.contest.record import path_of
from excise.simulations.contest.running import compare
from excise.simulations.contest.task import Task, make_task
from excise.simulations.judging.cost import Cost, summed
from excise.simulations.scenario import Scenario
from tests.scenarios import quiet
from tests.scenarios import scenario as tiny

LISTS = [
    {"id": f"list-{number}", "kind": "patients", "where": f'patient matches "{number}*"', "reason": "test"}
    for number in (1, 2, 3)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    return tiny(tmp_path_factory.mktemp("scenario"), requests=LISTS)


@pytest.fixture(scope="module")
def task(scenario: Scenario, home: Path) -> Task:
    return make_task(scenario, home, quiet)


def rows_of(x: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in x}


def test_each_step_forgets_its_list_and_nobody_has_what_was_forgotten_before(task: Task) -> None:
    first, second, third = ({kind: rows_of(step.pooled(kind)[0]) for kind in ("forget", "retain")} for step in task.steps)
    trained = rows_of(task.pooled("forget")[0]) | rows_of(task.pooled("retain")[0])
    assert all(step["forget"] for step in (first, second, third))
    assert first["forget"] | first["retain"] == trained
    assert second["forget"] | second["retain"] == first["retain"]
    assert third["forget"] | third["retain"] == second["retain"]
    assert first["forget"] | second["forget"] | third["forget"] == rows_of(task.pooled("forget")[0])
    assert third["retain"] == rows_of(task.pooled("retain")[0])
    for kind in ("unseen", "tuning", "judged", "alike", "alike_tuning"):
        assert all(rows_of(step.pooled(kind)[0]) == rows_of(task.pooled(kind)[0]) for step in task.steps)


def test_each_step_has_a_retrained_model_and_the_task_the_cost_of_all(task: Task) -> None:
    digests = [digest(snapshot(step.retrained)) for step in task.steps]
    assert len(set(digests)) == 3
    assert digests[-1] == digest(snapshot(task.retrained))
    rounds = len(task.trained.updates)
    seen = [len(step.pooled("retain")[1]) * rounds for step in task.steps]
    assert [step.retraining.images for step in task.steps] == seen
    assert task.retraining.images == sum(seen)
    assert task.retraining.rounds == 3 * rounds


def shifted(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose first weight is one more."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    return other


@pytest.mark.parametrize("federated", [False, True])
def test_every_step_begins_from_what_the_method_made_of_the_one_before(task: Task, federated: bool) -> None:
    seen: list[tuple[str, int]] = []

    def together(problem: FederatedProblem, settings: Settings) -> Composed:
        seen.append((digest(snapshot(problem.original)), sum(problem.forget.values())))
        assert problem.history is task.trained.updates
        return Composed(shifted(problem.original), 10 * len(seen), 2)

    def alone(problem: Problem, settings: Settings) -> Made:
        seen.append((digest(snapshot(problem.original)), len(problem.forget[1])))
        return Made(shifted(problem.original), 10 * len(seen))

    method = FederatedMethod("m", together, "nobody") if federated else Method("m", alone, "nobody")
    outcome = carry_out(entry_of(method), task, {}, 0)
    once, twice = outcome.earlier
    models = [task.original, once, twice]
    assert seen == [
        (digest(snapshot(model)), len(step.pooled("forget")[1])) for model, step in zip(models, task.steps, strict=True)
    ]
    first, last = (next(model.parameters()).detach().view(-1)[0] for model in (task.original, outcome.model))
    assert float(last - first) == pytest.approx(3, abs=1e-5)
    assert (outcome.cost.images, outcome.cost.rounds) == (60, 6 if federated else None)


def test_what_comes_back_is_told(task: Task) -> None:
    """Models that say one class for everything, of sets of one class: their accuracies are known."""

    def saying(answer: int) -> torch.nn.Module:
        model = copy.deepcopy(task.original)
        with torch.no_grad():
            model.head.weight.zero_()  # type: ignore[union-attr, operator]
            model.head.bias.copy_(torch.eye(2)[answer])  # type: ignore[union-attr, operator, arg-type]
        return model

    def labelled(step: Task, label: int) -> Task:
        sites = {
            name: replace(site, forget=(site.forget[0], torch.full_like(site.forget[1], label)))
            for name, site in step.sites.items()
        }
        return replace(step, sites=sites, retrained=saying(0))

    steps = tuple(labelled(step, label) for step, label in zip(task.steps, (0, 1, 0), strict=True))
    first, second = (len(step.pooled("forget")[1]) for step in steps[:2])
    assert first != second
    told = on_the_way(replace(task, steps=steps), [saying(0), saying(0), saying(1)])
    assert told["earlier_forget_accuracy"] == pytest.approx(second / (first + second))
    assert told["came_back"] == pytest.approx((second - first) / (first + second))
    assert told["earlier_tow"] == 1
    other = on_the_way(replace(task, steps=steps), [saying(1), saying(0), saying(0)])
    assert other["earlier_forget_accuracy"] == pytest.approx(first / (first + second))
    assert other["earlier_tow"] == pytest.approx(0.5)
    retrained = on_the_way(task, [step.retrained for step in task.steps])
    assert retrained["earlier_tow"] == 1
    assert on_the_way(task, [task.original] * 3)["came_back"] == 0
    assert on_the_way(replace(task, steps=()), [task.original]) == {}
    with pytest.raises(ValueError, match="one model for each of 3 requests, got 1"):
        on_the_way(task, [task.original])


def test_a_record_holds_it_of_all_three_models(scenario: Scenario, home: Path) -> None:
    def nothing(problem: Problem, settings: Settings) -> Made:
        return Made(copy.deepcopy(problem.original), 7)

    entry = entry_of(Method("nothing", nothing, "nobody"))
    (record,) = compare([scenario], {entry.name: entry}, 1, 1, home, quiet)
    assert record.cost.images == 21
    assert record.values["came_back"] == record.original["came_back"] == 0
    assert record.values["earlier_tow"] == record.original["earlier_tow"]
    assert record.retrained["earlier_tow"] == 1
    kept: dict[str, Any] = json.loads(path_of(home, record.key, record.entry, 0).read_text())
    assert kept["values"]["earlier_forget_accuracy"] == record.values["earlier_forget_accuracy"]


def test_a_request_for_what_is_forgotten_already_is_told(tmp_path: Path, home: Path) -> None:
    twice = tiny(tmp_path, requests=[LISTS[0], {**LISTS[0], "id": "again"}])
    with pytest.raises(ConfigError, match="no training image that an earlier request has not forgotten"):
        make_task(twice, home, quiet)


def test_costs_are_summed_and_of_memory_the_most_is_taken() -> None:
    first = Cost(images=3, seconds=1.0, bytes_up={"a": 1.0, "b": 2.0}, peak_bytes=9)
    second = Cost(images=4, seconds=2.0, rounds=2, bytes_up={"b": 5.0}, peak_bytes=8)
    assert summed([first, second]) == Cost(images=7, seconds=3.0, bytes_up={"a": 1.0, "b": 7.0}, peak_bytes=9)
    with pytest.raises(ValueError, match="bytes_up: expected it of every cost or of none"):
        summed([first, Cost(images=1)])
    with pytest.raises(ValueError, match="a cost or more"):
        summed([])
