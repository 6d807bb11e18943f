"""Whole simulations in this process: what a run leaves behind, that it repeats, and what it does when something fails."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from excise.client.accountant import Accountant, epsilon
from excise.client.site import open_site
from excise.common.errors import ConfigError, DataError, Interrupted, QuorumError
from excise.common.weights import digest, load_weights
from excise.server.record import RunFolder
from excise.simulations.engine import run_plan
from excise.simulations.run import Simulation, new_run_folder, plan_for, simulate
from excise.simulations.scenario import read_scenario
from excise.simulations.sites import make_sites
from tests.scenarios import (
    events,
    hurried,
    merged,
    numbers,
    pictures,
    prepared,
    quiet,
    run,
    same,
    scenario,
    write_files,
)

Json = dict[str, Any]

Json = dict[str, Any]


# --- the demo ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    home = tmp_path_factory.mktemp("demo")
    wanted = read_scenario("brain-mri")
    wanted = wanted.model_validate(
        merged(
            wanted.model_dump(),
            {
                "data": {"limit": 200},
                "policy": {"min_count": 3},
                "model": {"size": 32, "width": 0.05},
                "training": {"rounds": 2},
                "unlearning": {"local": {"rounds": 2, "steps": 2}},
            },
        )
    )
    return simulate(wanted, new_run_folder(home / "runs", wanted), home / "cache", "inprocess", quiet)


def test_the_demo_leaves_everything_in_its_folder(demo: Simulation) -> None:
    names = {path.name for path in demo.folder.iterdir()}
    assert names == {
        "config.toml",
        "events.jsonl",
        "checkpoints",
        "model.safetensors",
        "metrics.json",
        "report.html",
        "embeddings.json",
        "run.lock",
    }
    kinds = [event["event"] for event in events(demo.folder)]
    rounds = len(demo.results["unlearned"]["history"])
    opened, ended = ["started", "status", "class_mix", "reference"], ["unlearned", "embeddings", "verified", "finished"]
    assert kinds == [*opened, *["unlearned_round"] * rounds, *ended]
    assert digest(load_weights(demo.folder / "model.safetensors")) == demo.results["unlearned"]["digest"]
    metrics = json.loads((demo.folder / "metrics.json").read_text())
    assert metrics["unlearned"]["digest"] == demo.results["unlearned"]["digest"]
    assert list(metrics["sites"]) == [f"hospital-{i}" for i in range(1, 5)]
    assert metrics["sites"]["hospital-2"]["forget"] > 0
    assert sum(site["forget"] for site in metrics["sites"].values()) == metrics["sites"]["hospital-2"]["forget"]


def test_the_report_opens_offline(demo: Simulation) -> None:
    html = (demo.folder / "report.html").read_text()
    assert "<html" in html
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html)


def test_the_demo_repeats_from_its_config(demo: Simulation, tmp_path: Path) -> None:
    wanted = read_scenario("", demo.folder / "config.toml")
    sites = make_sites(wanted, demo.folder.parents[1] / "cache")
    results = run_plan(plan_for(wanted, sites), sites.configs, RunFolder(tmp_path), "inprocess", quiet)
    assert same(numbers(results), numbers(demo.results))


# --- repeating, stopping and going on ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_numbers(undisturbed: Json, tmp_path: Path) -> None:
    assert same(numbers(run(*prepared(tmp_path), tmp_path / "run")), numbers(undisturbed))


def test_another_seed_gives_another_model(undisturbed: Json, tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, seed=1)
    results = run(hurried(plan), sites, tmp_path / "run")
    assert results["unlearned"]["digest"] != undisturbed["unlearned"]["digest"]


@pytest.mark.parametrize("rounds", [3, 5, 7, 12])  # in training, before unlearning, between its rounds, in retraining
def test_a_run_that_was_stopped_goes_on_to_the_same_model(undisturbed: Json, tmp_path: Path, rounds: int) -> None:
    plan, sites = prepared(tmp_path)
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > rounds

    with pytest.raises(Interrupted):
        run(plan, sites, tmp_path / "run", stopped=stopped)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert same(numbers(run(plan, sites, tmp_path / "run")), numbers(undisturbed))


def test_a_finished_run_is_not_trained_again(undisturbed: Json, tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    first = run(plan, sites, tmp_path / "run")
    phases: list[tuple[str, int]] = []
    again = run(plan, sites, tmp_path / "run", progress=lambda phase, done, *_: phases.append((phase, done)))
    assert phases == [("original", 2), ("unlearned", 2), ("retrained", 2)]
    costs = [{k: v for k, v in results["unlearned"]["cost"].items() if k != "seconds"} for results in (first, again)]
    assert costs[0] == costs[1]
    assert same(numbers(again), numbers(undisturbed))


# --- privacy of updates ------------------------------------------------------------------------------------------------------

PRIVATE = {"policy": {"privacy": {"clip": 0.05, "noise_multiplier": 0.01, "keep_share": 0.5}}}


def test_a_run_with_all_of_privacy_on_repeats_and_tells_what_left(undisturbed: Json, tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, **PRIVATE)
    results = run_plan(plan, sites.configs, RunFolder(tmp_path / "run"), "inprocess", quiet)
    assert not events_of(tmp_path / "run", "refused")
    assert results["unlearned"]["digest"] != undisturbed["unlearned"]["digest"]
    # The bound holds for the clipped update; the noise has a hundredth of that on each of its numbers.
    longest = 0.05 * (1 + 0.01 * sum(x.numel() for x in load_weights(tmp_path / "run" / "model.safetensors").values()) ** 0.5)
    for entry in results["unlearned"]["history"]:
        assert all(0 < site["norm"] < 1.1 * longest for site in entry["updates"].values())
    rounds = dict.fromkeys(results["sites"], 2 * 2)  # of training and of retraining
    for entry in results["unlearned"]["history"]:
        for site in entry["updates"]:
            rounds[site] += 1
    spent = {path.parent.name: Accountant(path.parent).spent(1e-5) for path in sites.configs}
    assert {site: (told.updates, told.bare) for site, told in spent.items()} == {site: (n, 0) for site, n in rounds.items()}
    again = run_plan(plan, sites.configs, RunFolder(tmp_path / "again"), "inprocess", quiet)
    assert same(numbers(again), numbers(results))
    assert {path.parent.name: Accountant(path.parent).spent(1e-5) for path in sites.configs} == spent  # a run of its own


def test_sites_whose_epsilon_is_used_up_end_the_run(tmp_path: Path) -> None:
    bound = epsilon({1.0: 3}, 1e-5)
    plan, sites = prepared(tmp_path, policy={"privacy": {"clip": 0.01, "noise_multiplier": 1.0, "max_epsilon": bound}})
    with pytest.raises(QuorumError, match="forbidden"):
        run(hurried(plan), sites, tmp_path / "run")
    assert {event["code"] for event in events_of(tmp_path / "run", "refused")} == {"forbidden"}
    assert all(Accountant(path.parent).spent(1e-5).updates <= 3 for path in sites.configs)


def test_the_default_policy_leaves_a_run_as_it_is(undisturbed: Json, tmp_path: Path) -> None:
    off = {"policy": {"privacy": {"keep_share": 1.0, "noise_multiplier": 0.0, "delta": 0.1}}}
    assert same(numbers(run(*prepared(tmp_path, **off), tmp_path / "run")), numbers(undisturbed))


def events_of(folder: Path, kind: str) -> list[Json]:
    return [event for event in events(folder) if event["event"] == kind]


# --- the kinds of data ------------------------------------------------------------------------------------------------------


def test_sites_in_a_relative_cache_find_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sites = make_sites(scenario(tmp_path), Path("cache"))
    assert all(len(open_site(path).scan.rows) > 0 for path in sites.configs)


def test_an_npz_scenario_runs_to_its_report(tmp_path: Path) -> None:
    wanted = scenario(tmp_path)
    done = simulate(wanted, new_run_folder(tmp_path / "runs", wanted), tmp_path / "cache", "inprocess", quiet)
    assert (done.folder / "report.html").is_file()
    assert done.results["sites"]["site-2"]["forget"] > 0


def test_an_image_folder_scenario_forgets_a_class(tmp_path: Path) -> None:
    write_files(tmp_path / "images")
    (tmp_path / "images" / "table.csv").unlink()
    wanted = scenario(
        tmp_path,
        data={"source": "image-folder", "path": "images"},
        unlearning={"preset": "classes", "local": {"steps": 3, "learning_rate": 0.01}},
        request={"kind": "class", "where": "class = right"},
    )
    done = simulate(wanted, new_run_folder(tmp_path / "runs", wanted), tmp_path / "cache", "inprocess", quiet)
    assert done.plan.unlearning.target.kind == "nearest"
    sites = done.results["sites"].values()
    assert all(site["forget"] > 0 and site["retain"] > 0 for site in sites)
    assert sum(site["train"] + site["reference"] + site["held_out"] + site["excluded"] for site in sites) == 150
    assert not math.isfinite(done.results["unlearned"]["pooled"]["membership_auc"])  # nothing of that class is held out
    assert (done.folder / "report.html").is_file()


def test_volumes_run_through_the_same_code(tmp_path: Path) -> None:
    images, labels = pictures(60)
    volumes = np.repeat(images[:, None], 6, axis=1)  # six slices: padded to a cube
    np.savez(tmp_path / "images.npz", images=volumes, labels=labels)
    wanted = scenario(tmp_path, model={"name": "tests.common.test_models:tiny", "dims": 3}, partition={"sites": 2})
    done = simulate(wanted, new_run_folder(tmp_path / "runs", wanted), tmp_path / "cache", "inprocess", quiet)
    assert done.results["sites"]["site-2"]["forget"] > 0
    assert done.results["unlearned"]["pooled"]["forget_accuracy"] >= 0
    assert done.plan.model.dims == 3
    assert (done.folder / "report.html").is_file()


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "by-device", "forget-on-one-site"])
def test_a_csv_scenario_forgets_a_scanner(tmp_path: Path, kind: str) -> None:
    write_files(tmp_path / "images")
    plan, sites = prepared(
        tmp_path,
        data={"source": "csv", "path": "images", "labels": "images/table.csv"},
        partition={"kind": kind, "alpha": 5.0},
        request={"kind": "device", "where": "StationName = MR3"},
    )
    results = run(hurried(plan), sites, tmp_path / "run")
    holders = [name for name, counts in results["sites"].items() if counts["forget"]]
    if kind == "forget-on-one-site":
        assert holders == ["site-1"]
    elif kind == "by-device":
        assert len(holders) == 1
    assert math.isfinite(results["unlearned"]["pooled"]["forget_accuracy"])


def test_existing_dicom_sites_run(demo: Simulation, tmp_path: Path) -> None:
    (hospitals,) = (demo.folder.parents[1] / "cache").glob("brain-mri-*")
    plan, sites = prepared(
        tmp_path,
        data={"source": "dicom-sites", "path": str(hospitals)},
        training={"rounds": 1},
        unlearning={"local": {"rounds": 1}},
        request={"kind": "device", "where": "StationName = H2MR1"},
    )
    results = run(hurried(plan), sites, tmp_path / "run")
    assert list(results["sites"]) == [f"hospital-{i}" for i in range(1, 5)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "none.npz"}, r"no readable npz file at .*none\.npz"),
        ({"source": "image-folder", "path": "none"}, "no image folder at .*none"),
        ({"source": "csv", "path": "none", "labels": "none.csv"}, r"no readable labels at .*none\.csv"),
        ({"source": "csv", "path": "none", "labels": "table.csv"}, "no usable image in .*none; 2 skipped"),
        ({"source": "dicom-sites", "path": "none"}, r"no site in .*none: expected SITE/dicom/ and SITE/labels\.csv"),
        ({"classes": ["only"]}, "a classifier needs at least two"),
    ],
)
def test_missing_data_is_named(tmp_path: Path, data: Json, message: str) -> None:
    (tmp_path / "table.csv").write_text("image,label\na.png,left\nb.png,right\n")
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, data=data)


def test_more_sites_than_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="75 patients cannot be dealt to 90 sites"):
        prepared(tmp_path, partition={"sites": 90})
