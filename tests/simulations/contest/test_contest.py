"""Tasks, their judging and the benchmark's run, on a tiny scenario: what methods are given, what is kept, what goes on."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from excise.client.site import open_site
from excise.common.errors import ConfigError, DataError
from excise.common.weights import digest, snapshot
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod, FederatedProblem
from excise.simulations.baselines.method import Knob, Made, Method, Problem, Settings
from excise.simulations.contest import running
from excise.simulations.contest import task as tasks
from excise.simulations.contest.entry import entries_of
from excise.simulations.contest.judge import Objective, case_of
from excise.simulations.contest.record import path_of, read, records
from excise.simulations.contest.running import compare
from excise.simulations.contest.search import SEEDS
from excise.simulations.contest.task import Task, make_task
from excise.simulations.judging.metrics import known_metrics
from excise.simulations.scenario import Scenario
from excise.simulations.sites import make_sites
from tests.scenarios import scenario as tiny
from tests.scenarios import write_npz


def quiet(text: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    folder = tmp_path_factory.mktemp("scenario")
    write_npz(folder, 240)
    return tiny(folder)


@pytest.fixture(scope="module")
def task(scenario: Scenario, home: Path) -> Task:
    return make_task(scenario, home, quiet)


def rows_of(x: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in x}


def test_a_task_holds_every_image_once_and_no_method_sees_those_it_is_judged_on(
    scenario: Scenario, home: Path, task: Task
) -> None:
    kinds = ("forget", "retain", "unseen", "tuning", "judged", "alike", "alike_tuning")
    seen = {kind: rows_of(task.pooled(kind)[0]) for kind in kinds}
    sites = [open_site(config) for config in make_sites(scenario, home).configs]
    assert sum(len(of) for of in seen.values()) == len(set().union(*seen.values())) == sum(len(site.y_N) for site in sites)
    assert seen["tuning"]
    assert seen["judged"]
    central, federated = task.central(), task.federated()
    given = set[bytes]()
    for images in (central.forget, central.retain, central.unseen):
        given |= rows_of(images[0])
    for part in federated.sites.values():
        for images in (part.forget, part.retain, part.unseen):
            given |= rows_of(images[0])
    assert given == seen["forget"] | seen["retain"] | seen["unseen"] | seen["tuning"]
    assert list(federated.forgetting) == ["site-2"]
    assert len(federated.history) == scenario.training.rounds


def test_patients_lie_whole_in_one_half_of_the_held_out_images(scenario: Scenario, home: Path, task: Task) -> None:
    for config in make_sites(scenario, home).configs:
        site, images = open_site(config), task.sites[config.parent.name]
        whose = {image.numpy().tobytes(): row.patient for image, row in zip(site.x[:], site.scan.rows, strict=True)}
        tuning, judged = ({whose[key] for key in rows_of(of[0])} for of in (images.tuning, images.judged))
        assert not tuning & judged


def test_a_task_is_trained_once_and_found_again(
    scenario: Scenario, home: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "train_together", None)
    again = make_task(scenario, home, quiet)
    for name in ("original", "retrained", "initial"):
        assert digest(snapshot(getattr(again, name))) == digest(snapshot(getattr(task, name)))
    assert again.retraining == task.retraining
    for before, after in zip(task.trained.updates, again.trained.updates, strict=True):
        assert {site: digest(update) for site, update in before.items()} == {site: digest(of) for site, of in after.items()}


def test_what_is_kept_of_another_task_of_the_name_is_not_its_own(scenario: Scenario, home: Path, task: Task) -> None:
    other = scenario.model_copy(update={"training": scenario.training.model_copy(update={"rounds": 1})})
    apart = make_task(other, home, quiet)
    assert apart.name == task.name
    assert apart.key != task.key
    assert len(apart.trained.updates) == 1
    assert make_task(scenario.model_copy(update={"seed": 1}), home, quiet).key == task.key


def test_what_is_kept_is_found_wherever_home_is(tmp_path: Path) -> None:
    keys = set[str]()
    for home in (tmp_path / "here", tmp_path / "there"):
        folder = home / "data"
        folder.mkdir(parents=True)
        write_npz(folder, 240)
        small = tiny(folder)
        keys.add(
            make_task(small.model_copy(update={"training": small.training.model_copy(update={"rounds": 1})}), home, quiet).key
        )
    assert len(keys) == 1


def test_a_request_that_matches_nothing_is_told(scenario: Scenario, home: Path) -> None:
    nothing = scenario.request.model_copy(update={"where": "site = site-9 and class = 1"})
    with pytest.raises(ConfigError, match="matches no training image"):
        make_task(scenario.model_copy(update={"request": nothing}), home, quiet)


def test_the_objective_is_lowest_for_the_retrained_model_and_infinite_for_none(task: Task) -> None:
    objective = Objective(task)
    assert objective(task.retrained) == 0
    assert 0 <= objective(task.original) < 3
    broken = copy.deepcopy(task.original)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(math.nan)
    assert objective(broken) == math.inf


def test_models_are_judged_by_images_that_settings_are_not_chosen_by(task: Task) -> None:
    case, tuning = case_of(task), rows_of(task.pooled("tuning")[0])
    assert not rows_of(case.test[0]) & tuning
    assert len(case.sites) == len(case.test[1])
    assert set(case.alike[1].tolist()) == set(case.forget[1].tolist())


def _nothing(problem: Problem, settings: Settings) -> Made:
    return Made(copy.deepcopy(problem.original), int(settings["passes"]))


def _retrained(problem: FederatedProblem, settings: Settings) -> Composed:
    return Composed(copy.deepcopy(problem.original), 7, 3, {"site-1": 60}, {"site-1": 40, "site-2": 5})


def _refuses(problem: Problem, settings: Settings) -> Made:
    raise ConfigError("not with this task")


def _breaks(problem: Problem, settings: Settings) -> Made:
    model = copy.deepcopy(problem.original)
    with torch.no_grad():
        next(model.parameters()).fill_(math.inf)
    return Made(model, 1)


METHODS = (
    Method("nothing", _nothing, "nobody", {"passes": Knob(1, 9, 5, whole=True)}),
    FederatedMethod("together", _retrained, "nobody"),
    Method("refuses", _refuses, "nobody"),
    Method("breaks", _breaks, "nobody"),
)


def test_a_run_judges_every_method_on_every_seed_and_keeps_it(scenario: Scenario, home: Path) -> None:
    entries = entries_of(METHODS)
    found = compare([scenario], entries, 2, 3, home, quiet)
    assert [(one.entry, one.seed) for one in found] == [(name, seed) for seed in (0, 1) for name in entries]
    of = {(one.entry, one.seed): one for one in found}
    nothing, together = of["nothing (one place)", 1], of["together", 1]
    assert nothing.values["tow"] == together.values["tow"] <= 1
    assert nothing.values["forget_accuracy"] == nothing.original["forget_accuracy"]
    assert nothing.retrained["tow"] == 1
    assert (nothing.searched.trials, together.searched.trials) == (3, 0)  # the other has nothing to choose
    assert nothing.cost.images == nothing.searched.settings["passes"]
    assert (together.cost.images, together.cost.rounds, together.federated) == (7, 3, True)
    assert "not with this task" in of["refuses (one place)", 0].failed
    assert "not finite" in of["breaks (one place)", 0].failed
    assert sorted(records(home), key=str) == sorted(found, key=str)


def test_a_record_tells_every_cost_beside_retraining_and_the_accuracy_of_each_site_and_class(
    scenario: Scenario, home: Path, task: Task
) -> None:
    entries = entries_of(METHODS)
    nothing, together, refuses, _ = compare([scenario], entries, 1, 3, home, quiet)
    its = together.retraining
    size = 4 * sum(value.numel() for value in task.trained.updates[0]["site-1"].values())
    rounds = scenario.training.rounds
    assert its.bytes_up == its.bytes_down == dict.fromkeys(task.sites, rounds * size)
    assert together.values["bytes_up_ratio"] == pytest.approx(60 / (3 * rounds * size))
    assert together.values["bytes_down_ratio"] == pytest.approx(45 / (3 * rounds * size))
    assert together.ratios["bytes_down/site-3"] == 0
    assert its.images
    assert together.values["images_ratio"] == 7 / its.images
    assert not {"rounds_ratio", "bytes_up_ratio"} & nothing.values.keys()
    assert not nothing.cost.bytes_up
    assert {nothing.retrained[f"{name}_ratio"] for name in ("images", "seconds", "rounds", "bytes_up", "bytes_down")} == {1.0}
    known = known_metrics()
    assert all(known.get(name) for name in (*together.values, *together.retrained))
    for of, overall in (("original", nothing.original), ("retrained", nothing.retrained), ("method", nothing.values)):
        assert list(nothing.by_site[of]) == list(task.sites)
        assert min(nothing.by_site[of].values()) == overall["worst_site_accuracy"]
        assert set(nothing.by_class[of]) == set(task.classes)
        assert sum(nothing.by_class[of].values()) / 2 == pytest.approx(overall["test_balanced_accuracy"])
    assert nothing.by_site["method"] == nothing.by_site["original"]
    assert refuses.by_site == refuses.by_class == {}
    assert refuses.searched.loss == math.inf


def test_what_is_done_is_not_done_again(scenario: Scenario, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()

    def counted(problem: Problem, settings: Settings) -> Made:
        calls.append(problem.seed)
        return Made(copy.deepcopy(problem.original), 1)

    entries = entries_of([Method("counted", counted, "nobody", {"x": Knob(0, 1, 0.5)})])
    first = compare([scenario], entries, 1, 2, home, quiet)
    before = len(calls)
    with monkeypatch.context() as patch:
        patch.setattr(running, "make_task", None)  # nor are its models trained again
        assert compare([scenario], entries, 1, 2, home, quiet) == first
    assert len(calls) == before
    compare([scenario], entries, 1, 4, home, quiet)
    assert before < len(calls) <= before + 2 * len(SEEDS) + 1


def test_what_failed_is_not_judged_again(scenario: Scenario, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = entries_of(METHODS)
    first = compare([scenario], entries, 1, 3, home, quiet)
    monkeypatch.setattr(running, "judge", None)
    assert compare([scenario], entries, 1, 3, home, quiet) == first


def test_one_trial_is_no_search(scenario: Scenario, home: Path) -> None:
    calls = list[Settings]()

    def once(problem: Problem, settings: Settings) -> Made:
        calls.append(settings)
        return Made(copy.deepcopy(problem.original), 1)

    entries = entries_of([Method("once", once, "nobody", {"x": Knob(0, 1, 0.5)})])
    (first,) = compare([scenario], entries, 1, 1, home, quiet)
    assert compare([scenario], entries, 1, 1, home, quiet) == [first]
    assert calls == [{"x": 0.5}]
    assert (first.searched.settings, first.searched.trials) == ({"x": 0.5}, 0)


def test_a_file_that_is_no_record_is_told_and_one_of_another_version_left_out(scenario: Scenario, home: Path) -> None:
    (one,) = compare([scenario], entries_of([METHODS[1]]), 1, 1, home, quiet)
    path = path_of(home, one.key, one.entry, one.seed)
    whole = path.read_text()
    assert read(path) == one
    try:
        path.write_text(json.dumps(json.loads(whole) | {"version": 0}))
        assert read(path) is None
        path.write_text("{}")
        with pytest.raises(DataError, match="no result of the benchmark"):
            records(home)
    finally:
        path.write_text(whole)
    assert read(path.with_name("none.json")) is None


def test_methods_of_one_name_stand_apart_by_where_images_are() -> None:
    entries: Mapping[str, object] = entries_of([METHODS[0], replace(METHODS[1], name="nothing")])
    assert list(entries) == ["nothing (one place)", "nothing"]


def test_settings_are_searched_on_tasks_on_which_nobody_is_judged(scenario: Scenario, home: Path) -> None:
    """Of several draws of what is forgotten."""
    seen: dict[int, set[float]] = {}

    def noting(problem: Problem, settings: Settings) -> Made:
        seen.setdefault(problem.seed, set()).add(float(problem.forget[0].sum()))
        return Made(copy.deepcopy(problem.original), 1)

    entries = entries_of([Method("noting", noting, "nobody", {"x": Knob(0, 1, 0.5)})])
    found = compare([scenario], entries, 2, 2, home, quiet)
    assert [one.seed for one in found] == [0, 1]
    assert [*seen] == [*SEEDS, 0, 1]
    assert len({frozenset(of) for of in seen.values()}) == len(seen)


def test_a_search_of_other_knobs_is_another(scenario: Scenario, home: Path) -> None:
    """Their trials cannot be compared."""
    calls = list[Settings]()

    def run(problem: Problem, settings: Settings) -> Made:
        calls.append(settings)
        return Made(copy.deepcopy(problem.original), 1)

    for knobs in ({"x": Knob(0, 1, 0.5)}, {"x": Knob(0, 2, 0.5)}, {"y": Knob(0, 1, 0.5)}):
        calls.clear()
        compare([scenario], entries_of([Method("changing", run, "nobody", knobs)]), 1, 2, home, quiet)
        assert len(calls) >= 2 * len(SEEDS)
    calls.clear()
    knobs = {"y": Knob(0, 1, 0.5, of={"labels": Knob(0, 3, 2)})}  # for samples, forgotten here, the knob is the same
    compare([scenario], entries_of([Method("changing", run, "nobody", knobs)]), 1, 2, home, quiet)
    assert not calls
