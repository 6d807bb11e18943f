"""Requests: several at once, one after the other, and those that match nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from typer.testing import CliRunner

from excise import cli
from excise.client.site import open_site
from excise.client.table import Split
from excise.client.unlearning.inference import predict
from excise.common.errors import ConfigError, DataError, NothingToForget
from excise.common.models import build_model
from excise.common.weights import load_weights
from excise.server.record import REVISED
from excise.simulations.run import new_run_folder, simulate
from excise.simulations.scenario import later_scenario, read_scenario
from tests.scenarios import (
    SIDE,
    hurried,
    prepared,
    quiet,
    run,
    scenario,
)

Json = dict[str, Any]


SECOND = {"id": "second", "kind": "patients", "where": "site = site-1 and patient in (2, 3, 8, 12, 20)", "reason": "withdrawn"}
FIRST = {"id": "first", "kind": "samples", "where": "site = site-2 and class = 1", "reason": "test"}


def test_requests_are_carried_out_together(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, policy={"min_count": 1}, requests=[FIRST, SECOND])
    results = run(plan, sites, tmp_path / "run")
    alone = {}
    for wanted in (FIRST, SECOND):
        folder = tmp_path / str(wanted["id"])
        folder.mkdir()
        of_one, its = prepared(folder, policy={"min_count": 1}, request=wanted, training={"rounds": 1})
        alone[wanted["id"]] = run(hurried(of_one), its, folder / "run")["sites"]
    for site, counts in results["sites"].items():
        assert counts["forget"] == sum(sites[site]["forget"] for sites in alone.values())
    assert list(results["requests"]) == ["first", "second"]
    for name, models in results["requests"].items():
        assert set(models) == {"original", "unlearned", "retrained", "accepted"}
        assert models["unlearned"]["forget_images"] == sum(counts["forget"] for counts in alone[name].values()) > 0
    images = [models["unlearned"]["forget_images"] for models in results["requests"].values()]
    pooled = sum(
        n * models["unlearned"]["forget_accuracy"] for n, models in zip(images, results["requests"].values(), strict=True)
    )
    assert pooled / sum(images) == pytest.approx(results["unlearned"]["pooled"]["forget_accuracy"])


def test_two_classes_are_forgotten_together_and_neither_becomes_the_other(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 120, (240, SIDE, SIDE))
    labels = np.arange(240) % 4
    for image, label in zip(images, labels, strict=True):
        image[label * 4 : label * 4 + 4] += 100
    np.savez(tmp_path / "images.npz", images=images.astype(np.uint8), labels=labels, patients=np.arange(240) // 4)
    requests = [{"id": f"class-{c}", "kind": "class", "where": f"class = {c}", "reason": "test"} for c in (0, 3)]
    training: Json = {"rounds": 8, "batch_size": 8, "learning_rate": 0.1, "augment": False}
    changes: Json = {"policy": {"min_count": 1}, "requests": requests, "training": training}
    plan, sites = prepared(tmp_path, **changes, unlearning={"preset": "classes", "local": {"rounds": 3, "steps": 20}})
    results = run(hurried(plan), sites, tmp_path / "run")
    before, after = (results[model]["pooled"] for model in ("original", "unlearned"))
    assert before["forget_accuracy"] > 0.8
    assert after["forget_accuracy"] < 0.05
    assert {name: models["unlearned"]["forget_accuracy"] < 0.05 for name, models in results["requests"].items()} == {
        "class-0": True,
        "class-3": True,
    }
    assert after["held_out_accuracy"] > 0.8  # of the two classes that stay
    weights = load_weights(tmp_path / "run" / REVISED)
    model = build_model(plan.model)
    model.load_state_dict(weights)
    x = torch.from_numpy(images[np.isin(labels, (0, 3))][:, None] / 255).float()
    assert set(predict(model.eval(), x).argmax(1).tolist()) <= {1, 2}


def test_a_class_is_forgotten_where_the_request_says(tmp_path: Path) -> None:
    asked = {"kind": "class", "where": "class = 1 and site = site-2"}
    plan, sites = prepared(tmp_path, request=asked, unlearning={"preset": "classes", "local": {"rounds": 2, "steps": 2}})
    results = run(hurried(plan), sites, tmp_path / "run")
    held = {
        name: [row.label for row in open_site(path).scan.rows if row.split is Split.TRAIN]
        for name, path in zip(("site-1", "site-2", "site-3"), sites.configs, strict=True)
    }
    assert {site: counts["forget"] for site, counts in results["sites"].items()} == {
        "site-1": 0,
        "site-2": held["site-2"].count(1),
        "site-3": 0,
    }
    assert results["sites"]["site-1"]["retain"] == len(held["site-1"])  # the class stays where it was not asked for


def test_a_later_request_begins_from_the_revised_model(tmp_path: Path) -> None:
    first = scenario(tmp_path, policy={"min_count": 1})
    done = simulate(first, new_run_folder(tmp_path / "runs", first), tmp_path / "cache", "inprocess", quiet)
    (tmp_path / "second.toml").write_text(tomli_w.dumps(SECOND))
    second = later_scenario(done.folder, tmp_path / "second.toml")
    later = simulate(second, new_run_folder(tmp_path / "runs", second), tmp_path / "cache", "inprocess", quiet)
    before, after = done.results["sites"], later.results["sites"]
    assert after["site-1"]["forget"] > 0
    for site in before:
        assert after[site]["train"] == before[site]["retain"]  # what was forgotten is used for nothing any more
        assert after[site]["forgotten"] == before[site]["forget"] + before[site]["excluded"]
    assert later.results["original"]["cost"] == {}  # it is not trained anew
    told = [done.results["unlearned"]["pooled"], later.results["original"]["pooled"]]
    assert told[0]["held_out_loss"] == told[1]["held_out_loss"]  # the same model, and no held-out image matches the second
    assert read_scenario("", later.folder / "config.toml") == second
    (tmp_path / "third.toml").write_text(tomli_w.dumps(SECOND | {"id": "third", "where": "patient = 40"}))
    assert later_scenario(later.folder, tmp_path / "third.toml").forgotten == (first.request.where, second.request.where)


def test_a_later_request_needs_a_finished_run_of_the_same_sites(tmp_path: Path) -> None:
    first = scenario(tmp_path)
    folder = new_run_folder(tmp_path / "runs", first)
    with pytest.raises(ConfigError, match="finish that run first"):
        scenario(tmp_path, after=str(folder))
    (folder / "model.safetensors").touch()
    assert scenario(tmp_path, after=str(folder)).forgotten == (first.request.where,)
    with pytest.raises(ConfigError, match="'seed' is not as in the run"):
        scenario(tmp_path, after=str(folder), seed=1)
    result = CliRunner().invoke(cli.app, ["simulate", "--after", str(folder)])
    assert "give both or neither" in str(result.exception)
    (tmp_path / "second.toml").write_text(tomli_w.dumps(SECOND))
    base = ["simulate", "--after", str(folder), "--request", str(tmp_path / "second.toml")]
    for more in (["--seed", "5"], ["--sites", "4"], ["--resume", str(folder)], ["--scenario", "x.toml"]):
        assert "leave --scenario, --resume, --seed and --sites out" in str(CliRunner().invoke(cli.app, base + more).exception)


def test_what_a_list_named_cannot_stay_forgotten(tmp_path: Path) -> None:
    first = scenario(tmp_path, request=SECOND | {"where": "patient in @withdrawn"})
    folder = new_run_folder(tmp_path / "runs", first)
    (folder / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="lists grow"):
        scenario(tmp_path, after=str(folder))


def test_a_joined_request_that_matches_nothing_is_named(tmp_path: Path) -> None:
    typo = SECOND | {"where": "patient = 99999"}
    with pytest.raises(NothingToForget, match="matches 'second'"):
        run(*prepared(tmp_path, requests=[FIRST, typo]), tmp_path / "run")


def test_a_request_for_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing would be left"):
        run(*prepared(tmp_path, request=FIRST | {"where": "class in (0, 1)"}), tmp_path / "run")


@pytest.mark.parametrize(
    "request_of",
    [
        {"where": "site = site-9"},
        {"where": 'StationName = "MR7"'},
        {"kind": "class", "where": "class = 7"},
    ],
    ids=["no such site", "no such device", "no such class"],
)
def test_a_request_that_matches_nothing_changes_nothing(tmp_path: Path, request_of: Json) -> None:
    plan, sites = prepared(tmp_path, request=request_of)
    with pytest.raises(NothingToForget, match=r"no training image at any of 3 sites matches: .*\n.*Nothing was changed"):
        run(plan, sites, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["events.jsonl"]


def test_a_class_that_no_site_holds_leaves_the_others_scored(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, data={"classes": ["0", "1", "2"]})
    results = run(plan, sites, tmp_path / "run")
    pooled = results["unlearned"]["pooled"]
    assert math.isnan(pooled["held_out_accuracy_class_2"])
    assert math.isfinite(pooled["held_out_accuracy"])
    metrics = (tmp_path / "run" / "metrics.json").read_text()
    assert json.loads(metrics)["unlearned"]["pooled"]["held_out_accuracy_class_2"] is None
