"""Whole simulations in this process: what a run leaves behind, that it repeats, and what it does when something fails."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tomli_w
import torch
from flwr.app import Context, Message
from typer.testing import CliRunner

from excise import cli
from excise.common.errors import ConfigError, DataError, Interrupted, NothingToForget, QuorumError, StorageError
from excise.common.messages import AuditQuery, R, SiteUpdate, UnlearnInstruction
from excise.common.weights import digest, load_weights
from excise.server import unlearning
from excise.server.composition import known_rules
from excise.server.coordinator import Coordinator
from excise.server.plan import Plan
from excise.server.record import Phase, RunFolder
from excise.simulations import engine
from excise.simulations.engine import run_plan, simulated_client
from excise.simulations.local_grid import LocalGrid
from excise.simulations.run import Simulation, new_run_folder, plan_for, simulate
from excise.simulations.scenario import later_scenario, read_scenario
from excise.simulations.sites import Sites, make_sites
from tests.scenarios import merged, prepared, run, scenario, scenario_file, write_files, write_npz

Json = dict[str, Any]


def quiet(*_: object) -> None:
    """No progress."""


def events(folder: Path) -> list[Json]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def numbers(results: Json) -> Json:
    """What must repeat: scores and weights, not seconds."""
    return {
        "digest": results["unlearned"]["digest"],
        **{model: results[model]["pooled"] for model in ("original", "retrained", "unlearned")},
        "rounds": [entry["pooled"] for entry in results["unlearned"]["history"]],
    }


def same(a: Json, b: Json) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # as text: NaN is not equal to itself


# --- stopping and going back ------------------------------------------------------------------------------------------------

EVERYTHING_PASSES = {"held_out_drop": 1.0, "worst_site_drop": 1.0, "retain_drop": 1.0, "membership_tolerance": 0.5}
NOTHING_PASSES = {"held_out_drop": 0.0, "worst_site_drop": 0.0, "retain_drop": 0.0, "membership_tolerance": 0.0}


def with_steps(plan: Plan, **local: Any) -> Plan:
    """The plan with other `unlearning.local` settings, its best round kept."""
    changes = {"local": plan.unlearning.local.model_copy(update=local), "keep": "best"}
    return plan.model_copy(update={"unlearning": plan.unlearning.model_copy(update=changes)})


def test_unlearning_stops_at_the_first_settled_round_that_meets_the_rule(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, request={"acceptance": EVERYTHING_PASSES})
    results = run(with_steps(plan, rounds=5), sites, tmp_path / "run")
    assert len(results["unlearned"]["history"]) == results["unlearned"]["kept_round"] == 3
    (told,) = [event for event in events(tmp_path / "run") if event["event"] == "unlearned"]
    assert (told["rounds"], told["kept_round"], told["rule_met_on_reference"]) == (3, 3, True)


def test_the_model_goes_back_to_the_round_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlearning, "kept_round", lambda history, *_: min(len(history), 4))
    plan, sites = prepared(tmp_path, request={"acceptance": NOTHING_PASSES})
    plan = with_steps(plan, rounds=6)
    results = run(plan, sites, tmp_path / "run")
    history = results["unlearned"]["history"]
    assert (len(history), results["unlearned"]["kept_round"]) == (6, 4)
    assert [entry["excess"] for entry in history[:3]] == [None] * 3  # not settled, so not judged
    assert min(entry["excess"] for entry in history[3:]) > 0
    assert same(results["unlearned"]["pooled"], history[3]["pooled"])  # the weights are that round's
    assert not same(history[3]["pooled"], history[5]["pooled"])

    def stop_after_the_kept_round() -> bool:
        log = tmp_path / "again" / "events.jsonl"
        return log.exists() and log.read_text().count('"unlearned_round"') == 5

    with pytest.raises(Interrupted):
        run(plan, sites, tmp_path / "again", stopped=stop_after_the_kept_round)
    assert (RunFolder(tmp_path / "again").load_phase("unlearned") or Phase({})).rounds == 5
    assert run(plan, sites, tmp_path / "again")["unlearned"]["digest"] == results["unlearned"]["digest"]


@pytest.mark.parametrize("rule", [rule for rule in known_rules() if rule != "mean"])
def test_a_run_composes_by_every_rule(undisturbed: Json, tmp_path: Path, rule: str) -> None:
    results = run(*prepared(tmp_path, composition=rule), tmp_path / "run")
    recovery = [entry["recovery"] for entry in results["unlearned"]["history"]]
    assert recovery == ([False, False, True] if rule == "module_swap" else [False, False])
    like_mean = rule in {"task_arithmetic", "sign_consensus"}  # with a scale of 1; with one forget-holding site
    assert (results["unlearned"]["digest"] == undisturbed["unlearned"]["digest"]) is like_mean
    assert results["original"]["pooled"] == undisturbed["original"]["pooled"]  # training is ordinary averaging all the same


def test_candidates_are_tried_compared_and_kept(tmp_path: Path) -> None:
    candidates = [
        {"name": "gentle", "unlearning": {"psi": 0.1}},
        {"name": "nearest", "unlearning": {"target": {"kind": "nearest"}}, "composition": "sign_consensus"},
    ]
    merges = [
        {"name": "soup", "forget": ["gentle", "nearest"]},
        {"name": "swap", "forget": ["nearest"], "retain": ["gentle"], "composition": "module_swap"},
    ]
    folder = tmp_path / "run"
    results = run(*prepared(tmp_path, candidates=candidates, merges=merges), folder)
    found = results["candidates"]
    assert list(found) == ["gentle", "nearest", "soup", "swap"]
    models = {name: load_weights(folder / "candidates" / f"{name}.safetensors") for name in found}
    assert {name: digest(model) for name, model in models.items()} == {name: c["digest"] for name, c in found.items()}
    assert len({c["digest"] for c in found.values()}) == 4
    for name, tensor in models["soup"].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (models["gentle"][name] + models["nearest"][name]) / 2)
    assert [len(c["history"]) for c in found.values()] == [2, 2, 0, 1]  # module_swap has its recovery round
    (chosen,) = [name for name, candidate in found.items() if candidate["chosen"]]
    assert results["unlearned"]["candidate"] == chosen
    assert results["unlearned"]["digest"] == digest(load_weights(folder / "model.safetensors")) == found[chosen]["digest"]
    assert found[chosen]["on_front"]
    spent = sum(candidate["cost"].get("passes", 0) for candidate in found.values())
    assert results["unlearned"]["cost"]["passes"] > spent  # every candidate, and the reference
    again = run(*prepared(tmp_path, candidates=candidates, merges=merges), folder)
    assert same(numbers(again), numbers(results))


def test_the_last_audit_scores_every_candidate_in_one_round(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, candidates=[{"name": "a"}, {"name": "b", "composition": "ties"}])
    asked = asked_of(plan, sites, tmp_path / "run", AuditQuery)
    assert [list(query.candidates) for query in asked].count(["a", "b"]) == len(sites.configs)


def test_recovery_rounds_train_every_site_on_retain_images_alone(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, composition="module_swap", unlearning={"local": {"rounds": 4}})
    asked = asked_of(plan, sites, tmp_path / "run", UnlearnInstruction)
    assert {query.a_k > 0 for query in asked[: 4 * len(sites.configs)]} == {True, False}
    recovery = asked[4 * len(sites.configs) :]
    assert [(query.a_k, query.round_index) for query in recovery] == [(0.0, 2)] * len(sites.configs)


def asked_of(plan: Plan, sites: Sites, folder: Path, kind: type[R]) -> list[R]:
    """Run the plan; return the messages of one kind that went to the sites, in their order."""
    asked: list[R] = []

    class Watching(LocalGrid):
        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            asked.extend(kind.from_record(x.content) for x in messages if x.metadata.message_type == kind.KIND)
            return super().push_messages(messages)

    Coordinator(Watching(simulated_client(sites.configs), len(sites.configs)), plan, RunFolder(folder)).run()
    return asked


def test_judging_looks_at_reference_images_and_is_paid_for(tmp_path: Path) -> None:
    results = []
    for keep in ("last", "best"):  # each with sites of its own: they keep what they prepared
        (tmp_path / keep).mkdir()
        plan, sites = prepared(tmp_path / keep, request={"acceptance": NOTHING_PASSES}, unlearning={"keep": keep})
        results.append(run(plan, sites, tmp_path / keep / "run"))
    last, best = results
    counts = last["sites"].values()
    brief = sum(site["forget"] + site["reference"] + min(site["retain"], site["reference"]) for site in counts)
    # The deployed model, and the second of two rounds.
    assert best["unlearned"]["cost"]["passes"] - last["unlearned"]["cost"]["passes"] == 2 * brief
    assert last["unlearned"]["digest"] == best["unlearned"]["digest"]


SECOND = {"id": "second", "kind": "patients", "where": "site = site-1 and patient in (2, 3, 8, 12, 20)", "reason": "withdrawn"}
FIRST = {"id": "first", "kind": "samples", "where": "site = site-2 and class = 1", "reason": "test"}


def test_requests_are_carried_out_together(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, policy={"min_count": 1}, requests=[FIRST, SECOND])
    results = run(plan, sites, tmp_path / "run")
    alone = {}
    for wanted in (FIRST, SECOND):
        folder = tmp_path / str(wanted["id"])
        folder.mkdir()
        alone[wanted["id"]] = run(*prepared(folder, policy={"min_count": 1}, request=wanted), folder / "run")["sites"]
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


def test_a_candidate_whose_steps_diverge_is_left_out(tmp_path: Path) -> None:
    wild = {"name": "wild", "unlearning": {"local": {"learning_rate": 1e6, "clip_norm": 1e6}}}
    merges = [{"name": "both", "forget": ["wild", "calm"]}]
    plan, sites = prepared(tmp_path, candidates=[wild, {"name": "calm"}], merges=merges)
    results = run(plan, sites, tmp_path / "run")
    assert list(results["candidates"]) == ["calm"]
    (failed,) = [event for event in events(tmp_path / "run") if event["event"] == "candidate_failed"]
    assert failed["candidate"] == "wild"
    with pytest.raises(QuorumError):
        run(plan.model_copy(update={"candidates": plan.candidates[:1], "merges": ()}), sites, tmp_path / "alone")


def test_recovery_without_retain_images_is_refused(tmp_path: Path) -> None:
    changes = {"psi": 1.0, "local": {"retain_batch": 0}}
    with pytest.raises(ConfigError, match="recovery rounds train on retain images"):
        run(*prepared(tmp_path, composition="module_swap", unlearning=changes), tmp_path / "run")


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
                "training": {"rounds": 2},
                "unlearning": {"local": {"rounds": 2, "steps": 2}},
            },
        )
    )
    return simulate(wanted, new_run_folder(home / "runs", wanted), home / "cache", "inprocess", quiet)


def test_the_demo_leaves_everything_in_its_folder(demo: Simulation) -> None:
    names = {path.name for path in demo.folder.iterdir()}
    assert names == {"config.toml", "events.jsonl", "checkpoints", "model.safetensors", "metrics.json", "report.html"}
    kinds = [event["event"] for event in events(demo.folder)]
    rounds = len(demo.results["unlearned"]["history"])
    assert kinds == ["started", "status", "reference", *["unlearned_round"] * rounds, "unlearned", "finished"]
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Json:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(*prepared(folder), folder / "run")


def test_the_same_seed_gives_the_same_numbers(undisturbed: Json, tmp_path: Path) -> None:
    assert same(numbers(run(*prepared(tmp_path), tmp_path / "run")), numbers(undisturbed))


def test_another_seed_gives_another_model(undisturbed: Json, tmp_path: Path) -> None:
    results = run(*prepared(tmp_path, seed=1), tmp_path / "run")
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


# --- the kinds of data ------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "by-device", "forget-on-one-site"])
def test_a_csv_scenario_forgets_a_scanner(tmp_path: Path, kind: str) -> None:
    write_files(tmp_path / "images")
    plan, sites = prepared(
        tmp_path,
        data={"source": "csv", "path": "images", "labels": "images/table.csv"},
        partition={"kind": kind, "alpha": 5.0},
        request={"kind": "device", "where": "StationName = MR3"},
    )
    results = run(plan, sites, tmp_path / "run")
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
    results = run(plan, sites, tmp_path / "run")
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


# --- requests ---------------------------------------------------------------------------------------------------------------


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


# --- sites that fail --------------------------------------------------------------------------------------------------------

NodeApp = Callable[[Message, Context], Message]


def poisoned(app: NodeApp, kind: str) -> NodeApp:
    """The app of all sites, of which the third returns NaN for messages of `kind`."""

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if context.node_config["partition-id"] != 2 or message.metadata.message_type != kind:
            return reply
        update = SiteUpdate.from_record(reply.content)
        delta = {name: torch.full_like(tensor, math.nan) for name, tensor in update.delta.items()}
        return Message(replace(update, delta=delta).to_record(), reply_to=message)

    return answer


@pytest.mark.parametrize(("kind", "phase"), [("train.fit", "original"), ("train.unlearn", "unlearned")])
def test_an_update_of_nan_is_refused_and_the_run_goes_on(tmp_path: Path, kind: str, phase: str) -> None:
    plan, sites = prepared(tmp_path, rounds={"quorum": 0.5})
    grid = LocalGrid(poisoned(simulated_client(sites.configs), kind), 3)  # type: ignore[arg-type]
    results = Coordinator(grid, plan, RunFolder(tmp_path / "run")).run()
    refused = [event for event in events(tmp_path / "run") if event["event"] == "refused"]
    assert {(event["site"], event["code"]) for event in refused} == {("site-3", "not_finite")}
    assert phase in {event["round"] for event in refused}
    if kind == "train.unlearn":
        assert [entry["refused"] for entry in results["unlearned"]["history"]] == [[["site-3", "not_finite"]]] * 2
    weights = load_weights(tmp_path / "run" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_a_dead_site_is_left_out_when_the_quorum_allows(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds={"quorum": 0.5})
    grid = LocalGrid(simulated_client(sites.configs), 3, dead=[2])
    results = Coordinator(grid, plan, RunFolder(tmp_path / "run")).run()
    assert list(results["sites"]) == ["site-1", "site-2"]
    (refused,) = [event for event in events(tmp_path / "run") if event["event"] == "refused"]
    assert (refused["round"], refused["code"]) == ("status", "no_answer")


def test_a_dead_site_stops_a_run_that_needs_all(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    grid = LocalGrid(simulated_client(sites.configs), 3, dead=[2])
    with pytest.raises(QuorumError, match=r"2 of 3 sites .*\nHeard from: site-1, site-2\. Silent: site-3\.") as caught:
        Coordinator(grid, plan, RunFolder(tmp_path / "run")).run()
    assert caught.value.missing == ("site-3",)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_site_that_dies_on_the_way_is_named(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    grid = LocalGrid(simulated_client(sites.configs), 3)

    def progress(phase: str, done: int, total: int, note: str) -> None:
        if phase == "unlearned" and done == 1:
            grid._dead.add(101)

    with pytest.raises(QuorumError, match=r"2 of 3 sites .*site-2 \(no_answer\)") as caught:
        Coordinator(grid, plan, RunFolder(tmp_path / "run"), progress).run()
    assert caught.value.missing == ("site-2",)
    grid._dead.clear()
    assert Coordinator(grid, plan, RunFolder(tmp_path / "run")).run()["unlearned"]["history"][1]["refused"] == []


def test_too_few_sites_connected_is_told_at_the_deadline(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    with pytest.raises(QuorumError, match="3 of 4 sites connected; start the others"):
        run(plan.model_copy(update={"sites": 4}), sites, tmp_path / "run")


def test_two_sites_of_one_name_are_refused(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    twice = replace(sites, configs=(*sites.configs[:2], sites.configs[1]))
    with pytest.raises(DataError, match="two sites call themselves 'site-2'"):
        run(plan, twice, tmp_path / "run")


def test_sites_of_other_classes_are_refused(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    text = sites.configs[2].read_text()
    other = sites.configs[2].with_name("other.toml")
    other.write_text(re.sub(r"classes = \[[^]]*\]", 'classes = ["0", "1", "2"]', text))
    with pytest.raises(DataError, match="do not agree on the classes"):
        run(plan, replace(sites, configs=(*sites.configs[:2], other)), tmp_path / "run")


def test_a_full_disk_stops_the_run_and_it_can_go_on(
    undisturbed: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, sites = prepared(tmp_path)

    def disk_full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:

        def progress(phase: str, done: int, total: int, note: str) -> None:
            if (phase, done) == ("original", 1):  # the next write is a checkpoint
                patch.setattr(os, "fsync", disk_full)

        with pytest.raises(StorageError, match=r"original\.safetensors: No space left") as caught:
            run(plan, sites, tmp_path / "run", progress=progress)
    assert caught.value.exit_code == 5
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["original.safetensors"]
    kept = RunFolder(tmp_path / "run").load_phase("original")
    assert kept is not None
    assert kept.rounds == 1
    assert same(numbers(run(plan, sites, tmp_path / "run")), numbers(undisturbed))


# --- the command line -------------------------------------------------------------------------------------------------------


@pytest.fixture
def excise(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command in a folder of its own; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["excise", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return (code or 0, *capfd.readouterr())

    return call


def test_json_is_all_of_standard_output(tmp_path: Path, excise: Callable[..., Any]) -> None:
    code, out, err = excise("simulate", "--json", "--backend", "inprocess", "--scenario", scenario_file(tmp_path))
    assert code == 0, err
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads(out) == json.loads((folder / "metrics.json").read_text())
    assert "Acceptance rule" in err
    assert str(folder.name) in err.replace("\n", "")
    assert list((tmp_path / "xdg" / "excise").iterdir())


def test_options_stand_in_for_the_scenario(tmp_path: Path, excise: Callable[..., Any]) -> None:
    code, out, err = excise("simulate", "--scenario", scenario_file(tmp_path), "--seed", 7, "--sites", 5, "--dry-run")
    assert code == 0, err
    shown = json.loads(out)
    assert (shown["seed"], shown["partition"]["sites"]) == (7, 5)
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_used_exits_2(tmp_path: Path, excise: Callable[..., Any]) -> None:
    code, out, err = excise("simulate", "brain-mir", "--backend", "inprocess")
    assert (code, out) == (2, "")
    assert "did you mean 'brain-mri'?" in err
    code, out, err = excise("simulate", "--scenario", scenario_file(tmp_path, training={"round": 1}))
    assert (code, out) == (2, "")
    assert "did you mean 'rounds'?" in err
    assert not (tmp_path / "runs").exists()
    code, out, err = excise("simulate", "--scenario", scenario_file(tmp_path, data={"path": "none.npz"}))
    assert (code, out) == (2, "")
    assert "no readable npz file" in err
    code, _, err = excise("simulate", "--resume", tmp_path)
    assert code == 2
    assert "is not a run folder" in err
    assert "Traceback" not in err


def test_nothing_to_forget_exits_3(tmp_path: Path, excise: Callable[..., Any]) -> None:
    file = scenario_file(tmp_path, request={"where": "site = site-9"})
    code, out, err = excise("simulate", "--json", "--backend", "inprocess", "--scenario", file)
    assert (code, out) == (3, "")
    assert "Nothing was changed" in err
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_missed_quorum_exits_4(tmp_path: Path, excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LocalGrid", partial(LocalGrid, dead=[1]))
    code, out, err = excise("simulate", "--json", "--backend", "inprocess", "--scenario", scenario_file(tmp_path))
    assert (code, out) == (4, "")
    assert "Silent: site-2." in err
    assert "--resume" in err


def test_a_folder_that_cannot_be_written_exits_5(tmp_path: Path, excise: Callable[..., Any]) -> None:
    (tmp_path / "out").write_text("in the way")
    arguments = ("simulate", "--json", "--backend", "inprocess", "--scenario", scenario_file(tmp_path))
    code, out, err = excise(*arguments, "--out", tmp_path / "out")
    assert (code, out) == (5, "")
    assert "cannot write" in err
    code, out, err = excise(*arguments, "--cache", tmp_path / "out")
    assert (code, out) == (5, "")


def test_ctrl_c_while_hospitals_are_made_exits_130(
    tmp_path: Path, excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("excise.simulations.run.make_sites", interrupted)
    code, out, err = excise("simulate", "--backend", "inprocess", "--scenario", scenario_file(tmp_path))
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_ctrl_c_ends_a_run_within_seconds_and_resume_finishes_it(tmp_path: Path, excise: Callable[..., Any]) -> None:
    file = scenario_file(tmp_path, training={"rounds": 100_000}, rounds={"deadline": 60.0})
    command = [sys.executable, "-m", "excise.cli", "simulate", "--json", "--backend", "inprocess", "--scenario", str(file)]
    root = Path(cli.__file__).parents[1]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path / "xdg")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob("runs/*/checkpoints/original.safetensors")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"--resume runs/{folder.name}" in err.replace("\n", "").replace("  ", " ")
    # Nobody can wait for 100,000 rounds: the run is shortened, and then goes on from its checkpoint.
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("rounds = 100000", "rounds = 1"))
    code, out, err = excise("simulate", "--json", "--backend", "inprocess", "--resume", folder)
    assert code == 0, err
    assert json.loads(out)["unlearned"]["digest"]
    assert (folder / "report.html").is_file()


def test_write_npz_is_what_the_tiny_scenario_reads(tmp_path: Path) -> None:
    write_npz(tmp_path, 40)
    _, sites = prepared(tmp_path)
    assert sites.classes == ("0", "1")
