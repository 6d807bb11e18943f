"""Shadow models of a task that has to be learned by heart: what of it is told apart, what is not, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from excise.common.errors import ConfigError
from excise.common.models import ModelSpec
from excise.common.weights import digest, snapshot
from excise.simulations.baselines.method import Settings
from excise.simulations.contest import task as tasks
from excise.simulations.contest.cli import print_records
from excise.simulations.contest.entry import Entry, Outcome
from excise.simulations.contest.running import compare
from excise.simulations.contest.shadows import Shadow, check_number, make_shadow
from excise.simulations.contest.task import Images, SiteImages, Task, make_task
from excise.simulations.contest.traces import LONE, traced
from excise.simulations.judging.cost import Cost
from excise.simulations.scenario import Scenario
from tests.scenarios import SIDE
from tests.scenarios import scenario as tiny

COUNT, SHADOWS = 240, 6


def net(spec: ModelSpec) -> nn.Module:
    """Learns noise by heart in a few steps."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 24), nn.ReLU(), nn.Linear(24, spec.classes))


def quiet(text: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Noise with labels that mean nothing, two images of each patient: who was trained on one knows it, nobody else can."""
    folder, rng = tmp_path_factory.mktemp("scenario"), np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, SIDE, SIDE)).astype(np.uint8)
    labels, patients = rng.permutation(np.arange(COUNT) % 2), np.arange(COUNT) // 2
    np.savez(folder / "images.npz", images=images, labels=labels, patients=patients)
    training = {"rounds": 20, "learning_rate": 0.1, "augment": False}
    model = {"name": "tests.simulations.contest.test_shadows:net"}
    return tiny(folder, training=training, model=model, partition={"sites": 2}, request={"where": "site = site-2"})


@pytest.fixture(scope="module")
def task(scenario: Scenario, home: Path) -> Task:
    return make_task(scenario, home, quiet)


@pytest.fixture(scope="module")
def pair(scenario: Scenario, home: Path, task: Task) -> tuple[Shadow, Shadow]:
    return make_shadow(task, scenario, 0, home, quiet), make_shadow(task, scenario, 1, home, quiet)


def rows_of(x: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in x}


def _nothing(task: Task, settings: Settings, seed: int) -> Outcome:
    return Outcome(task.original, Cost(images=1))


def _retrained(task: Task, settings: Settings, seed: int) -> Outcome:
    return Outcome(task.retrained, Cost(images=1))


def _refuses(task: Task, settings: Settings, seed: int) -> Outcome:
    if len(task.pooled("retain")[1]) < 60:  # of half the images
        raise ConfigError("not with so few images")
    return Outcome(task.original, Cost(images=1))


def _fails(task: Task, settings: Settings, seed: int) -> Outcome:
    raise ConfigError("never")


ENTRIES = {
    name: Entry(name, True, {}, "nobody", run)
    for name, run in (("nothing", _nothing), ("as retrained", _retrained), ("refuses", _refuses), ("fails", _fails))
}


def test_a_pair_deals_out_all_training_images_by_whole_patients(task: Task, pair: tuple[Shadow, Shadow]) -> None:
    for kind in ("forget", "retain"):
        one, other = (rows_of(of.task.pooled(kind)[0]) for of in pair)
        assert not one & other
        assert one | other == rows_of(task.pooled(kind)[0])
        assert abs(len(one) - len(other)) <= 4
    first, second = (
        {p for site in of.task.sites.values() for p in site.forget_patients + site.retain_patients} for of in pair
    )
    assert first
    assert not first & second
    x = task.pooled("forget")[0]
    assert torch.equal(pair[0].unlearned_N, ~pair[1].unlearned_N)
    assert all(rows_of(x[of.unlearned_N]) == rows_of(of.task.pooled("forget")[0]) for of in pair)
    for kind in ("unseen", "tuning", "judged"):
        assert torch.equal(pair[0].task.pooled(kind)[0], task.pooled(kind)[0])


def test_pairs_seeds_and_first_weights_differ(scenario: Scenario, home: Path, task: Task, pair: tuple[Shadow, Shadow]) -> None:
    next_pair = make_shadow(task, scenario, 2, home, quiet)
    assert (pair[0].pair, pair[1].pair, next_pair.pair) == (0, 0, 1)
    assert not torch.equal(pair[0].unlearned_N, next_pair.unlearned_N)
    assert not torch.equal(pair[1].unlearned_N, next_pair.unlearned_N)
    begins = {digest(snapshot(of.task.initial)) for of in (*pair, next_pair)}
    assert len(begins | {digest(snapshot(task.initial))}) == 4


def test_what_is_learned_by_heart_is_told_apart_and_what_was_never_seen_is_not(
    scenario: Scenario, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing, retrained, refuses, fails = compare([scenario], ENTRIES, 1, 1, home, quiet, SHADOWS)
    assert nothing.original["ulira_auc"] > 0.75
    assert nothing.original["rmia_auc"] > 0.7
    assert nothing.retrained["ulira_auc"] == pytest.approx(0.5, abs=0.1)
    assert nothing.retrained["rmia_auc"] == pytest.approx(0.5, abs=0.1)
    names = {"ulira_auc", "ulira_tpr", "rmia_auc", "rmia_tpr"}
    assert all(nothing.values[name] == nothing.original[name] for name in names)
    assert all(retrained.values[name] == retrained.retrained[name] for name in names)
    assert (nothing.shadows, nothing.untraced) == (SHADOWS, "")
    assert refuses.untraced == "not with so few images"
    assert not names & refuses.values.keys()
    assert refuses.values["tow"] == nothing.values["tow"]
    assert (fails.failed, fails.untraced, fails.values) == ("never", "", {})
    assert fails.retrained == nothing.retrained
    print_records([nothing, retrained, refuses, fails])
    table = capsys.readouterr().out
    assert table.count("as retrained") == 2
    assert f"{nothing.original['rmia_auc']:.3f}" in table
    assert f"{nothing.retrained['ulira_auc']:.3f}" in table


def test_a_method_is_run_under_the_seed_of_each_shadow_model(scenario: Scenario, home: Path, task: Task) -> None:
    """A second retraining draws from the seed that it is given: under another one it could be the first again."""
    seeds = list[tuple[int, int]]()

    def noting(task: Task, settings: Settings, seed: int) -> Outcome:
        seeds.append((seed, task.seed))
        return Outcome(task.original, Cost(images=1))

    (before,) = compare([scenario], {"noting": Entry("noting", True, {}, "nobody", noting)}, 1, 1, home, quiet)
    seeds.clear()
    traced([before], task, scenario, {"noting": Entry("noting", True, {}, "nobody", noting)}, SHADOWS, home, quiet)
    assert len({given for given, _ in seeds}) == SHADOWS
    assert all(given == own for given, own in seeds)


def test_what_is_done_is_not_done_again(scenario: Scenario, home: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {name: ENTRIES[name] for name in ("nothing", "as retrained")}
    before = compare([scenario], asked, 1, 1, home, quiet, SHADOWS)
    monkeypatch.setattr(tasks, "train_together", None)

    def never(task: Task, settings: Settings, seed: int) -> Outcome:
        raise AssertionError("it was run again")

    again = {name: replace(entry, run=never) for name, entry in asked.items()}
    assert compare([scenario], again, 1, 1, home, quiet, SHADOWS) == before
    assert compare([scenario], again, 1, 1, home, quiet, 0) == before
    # The records alone are gone: shadow models and what methods made of them are found.
    bare = [replace(one, shadows=0) for one in before]
    assert traced(bare, task, scenario, again, SHADOWS, home, quiet) == before


def test_one_patient_cannot_be_halved(scenario: Scenario, home: Path, task: Task) -> None:
    (before,) = compare([scenario], {"nothing": ENTRIES["nothing"]}, 1, 1, home, quiet, SHADOWS)

    def lone(site: SiteImages) -> SiteImages:
        images: Images = (site.forget[0][:1], site.forget[1][:1])
        return replace(site, forget=images, forget_patients=site.forget_patients[:1])

    alone = replace(task, sites={name: lone(site) for name, site in task.sites.items()})
    asked = [replace(before, shadows=0, values={"tow": 1.0})]
    (found,) = traced(asked, alone, scenario, ENTRIES, SHADOWS, home / "lone", quiet)
    assert found.untraced == LONE
    assert found.values == {"tow": 1.0}


@pytest.mark.parametrize("number", [2, 4, 7])
def test_too_few_or_no_pairs_are_refused_before_anything_is_done(number: int, scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"expected 0, 6, 8, …, got {number}"):
        compare([scenario], ENTRIES, 1, 1, tmp_path, quiet, number)
    check_number(0)
    check_number(6)
