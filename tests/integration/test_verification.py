"""What whole runs measure of their revised model, through the real apps: and what they say where nothing can be told."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from flwr.app import Context, Message

from excise.common import messages as m
from excise.common.errors import QuorumError, SiteError
from excise.server import resurfacing
from excise.server.coordinator import Coordinator
from excise.server.record import RunFolder
from excise.server.report import render_report
from excise.server.scores import Audit
from excise.simulations.engine import simulated_client
from excise.simulations.local_grid import LocalGrid
from excise.simulations.sites import Sites
from tests.scenarios import asked_of, events, hurried, merged, numbers, prepared, run, same, write_npz

Json = dict[str, Any]
BOTH: Json = {"verification": {"resurfacing": True, "resamples": 200}, "request": {"linear_probe": True}}
LARGER: Json = {"request": {"where": "patient in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)"}}


def changed(sites: Sites, edit: Callable[[Json], None], only: int | None = None) -> None:
    """Edit the site.toml of every site, or of one."""
    for i, path in enumerate(sites.configs):
        if only in (None, i):
            config = tomllib.loads(path.read_text())
            edit(config)
            path.write_text(tomli_w.dumps(config))


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, Path, Any]:
    home = tmp_path_factory.mktemp("verified")
    write_npz(home, 300)
    plan, sites = prepared(home, **merged(BOTH, LARGER))
    return run(plan, sites, home / "run"), home, plan


def test_a_run_tells_how_sure_it_is(verified: tuple[Json, Path, Any]) -> None:
    results, home, _ = verified
    found = json.loads((home / "run" / "metrics.json").read_text())["verification"]
    assert found["membership_auc"].keys() == {"original", "unlearned", "retrained"}
    for model, told in found["membership_auc"].items():
        assert told["value"] == results[model]["pooled"]["membership_auc"]
        assert 0 <= told["low"] <= told["value"] <= told["high"] <= 1
    (event,) = [event for event in events(home / "run") if event["event"] == "verified"]
    assert event["membership_auc"]["value"] == pytest.approx(found["membership_auc"]["unlearned"]["value"], abs=1e-4)
    assert event["linear_probe"] == pytest.approx(found["linear_probe"]["unlearned"]["value"], abs=1e-4)


def test_the_worst_site_is_named_with_its_own_number(verified: tuple[Json, Path, Any]) -> None:
    results, _, _ = verified
    worst = results["verification"]["worst_site"]
    told = worst["held_out_accuracy"]
    of = {model: results[model]["sites"] for model in ("original", "unlearned")}
    changes = {s: of["unlearned"][s]["held_out_accuracy"] - of["original"][s]["held_out_accuracy"] for s in of["original"]}
    assert told["change"] == pytest.approx(min(changes.values())) == pytest.approx(changes[told["site"]])
    assert told["low"] <= told["value"] == of["unlearned"][told["site"]]["held_out_accuracy"] <= told["high"]
    assert worst["membership_auc"]["site"] in of["original"]
    assert worst["membership_auc"]["low"] <= worst["membership_auc"]["value"] <= worst["membership_auc"]["high"]


def test_what_comes_back_is_told_of_the_revised_and_of_the_retrained_model(verified: tuple[Json, Path, Any]) -> None:
    results, home, _ = verified
    found = results["verification"]["resurfacing"]
    assert found.keys() == {"unlearned", "retrained"}
    for model, told in found.items():
        pooled = results[model]["pooled"]
        assert told["before"] == {key: pooled[key] for key in told["before"]}
        assert told["forget_accuracy"] == told["after"]["forget_accuracy"] - told["before"]["forget_accuracy"]
        rises = [
            told["after"][f"matched_{of}_accuracy"] - told["before"][f"matched_{of}_accuracy"] for of in ("forget", "held_out")
        ]
        assert told["beside_unseen"] == pytest.approx(rises[0] - rises[1])
        assert told["cost"]["rounds"] == 1
        assert told["after"] != told["before"]
        kept = RunFolder(home / "run").load_phase(f"resurfaced-{model}")
        assert kept is not None
        assert kept.weights == {}  # the model is thrown away


def test_the_revised_model_is_that_of_a_run_that_is_not_verified(verified: tuple[Json, Path, Any], tmp_path: Path) -> None:
    results, _, _ = verified
    write_npz(tmp_path, 300)
    plain = run(*prepared(tmp_path, **LARGER), tmp_path / "run")
    assert same(numbers(plain), numbers(results))
    assert plain["unlearned"]["cost"]["rounds"] == results["unlearned"]["cost"]["rounds"]
    assert (plain["verification"]["resurfacing"], plain["verification"]["linear_probe"]) == (None, None)


def test_a_run_that_is_not_verified_asks_sites_for_nothing_more(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    asked = asked_of(hurried(plan), sites, tmp_path / "run", m.UnlearnInstruction, m.ProbeQuery)
    assert [type(one) for one in asked] == [m.UnlearnInstruction] * 3 * plan.unlearning.local.rounds


def test_the_pass_over_retain_images_is_a_round_that_sites_allow(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, verification={"resurfacing": True, "steps": 5, "batch": 8})
    *_, a, b, c = asked_of(hurried(plan), sites, tmp_path / "run", m.UnlearnInstruction)
    for asked in (a, b, c):
        assert asked.a_k == 0
        assert (asked.settings.local.retain_batch, asked.settings.local.schedule) == (8, "constant")
        assert 1 <= asked.settings.local.steps <= 5
    assert len({asked.seed for asked in (a, b, c)}) == 3


@pytest.mark.parametrize("when", ["before the round", "before the audit"])
def test_an_interrupted_verification_goes_on_and_ends_alike(
    verified: tuple[Json, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    results, _, _ = verified
    write_npz(tmp_path, 300)
    plan, sites = prepared(tmp_path, **merged(BOTH, LARGER))

    class Killed(Exception):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if when == "before the round":
            patch.setattr(resurfacing, "_train", killed)
        else:
            saved = RunFolder.save_phase

            def save(folder: RunFolder, name: str, phase: Any, *given: Any, **named: Any) -> None:
                saved(folder, name, phase, *given, **named)
                if name == "resurfaced-unlearned":
                    raise Killed

            patch.setattr(RunFolder, "save_phase", save)
        with pytest.raises(Killed):
            run(plan, sites, tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists()
    asked = asked_of(plan, sites, tmp_path / "run", m.UnlearnInstruction)
    assert len(asked) == (6 if when == "before the round" else 3)  # what was done is not done again
    again = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert again["unlearned"]["digest"] == results["unlearned"]["digest"]

    def told(found: Json) -> Json:
        return {name: {**of, "cost": 0} for name, of in found["verification"]["resurfacing"].items()}

    assert told(again) == told(results)
    assert again["verification"]["membership_auc"] == results["verification"]["membership_auc"]


@pytest.mark.parametrize(("limit", "measured"), [(2, False), (3, True)])
def test_a_site_whose_rounds_are_used_up_is_not_measured_and_the_run_ends(tmp_path: Path, limit: int, measured: bool) -> None:
    plan, sites = prepared(tmp_path, verification={"resurfacing": True})
    plan = hurried(plan)
    changed(sites, lambda config: config["limits"].update(rounds=limit), only=1)
    results = run(plan, sites, tmp_path / "run")
    assert bool(results["verification"]["resurfacing"]) == measured
    told = [event["codes"] for event in events(tmp_path / "run") if event["event"] == "not_measured"]
    assert told == ([] if measured else [["forbidden"]])
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_site_that_is_silent_stops_the_run_which_can_go_on(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, verification={"resurfacing": True})
    app = simulated_client(sites.configs)
    grid = LocalGrid(app, 3)

    def dies(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "train.unlearn":
            asked = m.UnlearnInstruction.from_record(message.content)
            if asked.settings.local.schedule == "constant":
                grid._dead.add(101)
                return Message(m.Failure(code=SiteError.STORAGE, incident="0" * 16).to_record(), reply_to=message)
        return reply

    grid._app = dies  # type: ignore[assignment]
    with pytest.raises(QuorumError):
        Coordinator(grid, plan, RunFolder(tmp_path / "run")).run()
    assert run(plan, sites, tmp_path / "run")["verification"]["resurfacing"].keys() == {"unlearned", "retrained"}


def test_sites_that_tell_nothing_are_not_measured_never_zero(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, **BOTH, unlearning={"target": {"kind": "nearest"}})
    changed(sites, lambda config: config["policy"].update(metrics=[]))
    results = run(plan, sites, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["verification"]
    for told in found["resurfacing"].values():
        assert (told["forget_accuracy"], told["beside_unseen"]) == (None, None)
    worst = found["worst_site"]["held_out_accuracy"]
    assert (worst["value"], worst["change"], worst["low"], worst["high"]) == (None,) * 4
    assert found["linear_probe"] == {}
    assert render_report(results, plan)


def test_a_forget_set_smaller_than_min_count_is_not_measured(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, **merged(BOTH, {"policy": {"min_count": 12}, "request": {"where": "patient = 3"}}))
    found = run(hurried(plan), sites, tmp_path / "run")["verification"]
    for told in found["membership_auc"].values():
        assert all(math.isnan(told[key]) for key in ("value", "low", "high"))
    assert found["worst_site"]["membership_auc"]["site"] == ""
    assert math.isnan(found["resurfacing"]["unlearned"]["forget_accuracy"])
    assert found["linear_probe"] == {}


def test_one_site_alone_is_the_worst(tmp_path: Path) -> None:
    write_npz(tmp_path, 200)
    where = LARGER["request"]["where"]
    plan, sites = prepared(tmp_path, **merged(BOTH, {"partition": {"sites": 1}, "request": {"where": where}}))
    found = run(hurried(plan), sites, tmp_path / "run")["verification"]
    assert {worst["site"] for worst in found["worst_site"].values()} == {"site-1"}
    pooled, own = found["membership_auc"]["unlearned"], found["worst_site"]["membership_auc"]
    assert own["value"] == pooled["value"]
    assert own["low"] == pytest.approx(pooled["low"], abs=0.05)


def test_a_forgotten_class_is_measured_without_unseen_images_of_it(tmp_path: Path) -> None:
    asked = {"kind": "class", "where": "class = 1", "linear_probe": True}
    settings: Json = {"preset": "classes", "local": {"rounds": 2, "steps": 2}}
    plan, sites = prepared(tmp_path, verification={"resurfacing": True}, request=asked, unlearning=settings)
    results = run(plan, sites, tmp_path / "run")
    found = results["verification"]
    told = found["resurfacing"]["unlearned"]
    assert not math.isnan(told["forget_accuracy"])
    assert math.isnan(told["beside_unseen"])
    assert math.isnan(found["membership_auc"]["unlearned"]["value"])
    assert found["linear_probe"].keys() == {"original", "unlearned", "retrained"}
    assert all(0.5 < probed["value"] <= 1 for probed in found["linear_probe"].values())  # brightness tells the class
    assert sum(found["linear_probe"]["original"]["sites"].values()) > 0
    assert render_report(results, plan)


def test_an_audit_keeps_what_each_site_told() -> None:
    told = {"a": m.ModelAudit({"forget_effective": 3.0})}
    assert Audit.of(told, 2).told == told
    assert "told" not in Audit.of(told, 2).as_json()
