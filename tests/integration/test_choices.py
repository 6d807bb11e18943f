"""Which round, which rule, which candidate: what becomes the revised model."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.common.errors import ConfigError, Interrupted, QuorumError
from excise.common.messages import AuditQuery, UnlearnInstruction
from excise.common.weights import digest, load_weights
from excise.server import turns, unlearning
from excise.server.composition import known_rules
from excise.server.plan import Plan
from excise.server.record import Phase, RunFolder
from excise.server.report import write_report
from tests.scenarios import (
    asked_of,
    events,
    hurried,
    numbers,
    prepared,
    run,
    same,
)

Json = dict[str, Any]


EVERYTHING_PASSES = {"held_out_drop": 1.0, "worst_site_drop": 1.0, "retain_drop": 1.0, "membership_tolerance": 0.5}
NOTHING_PASSES = {"held_out_drop": 0.0, "worst_site_drop": 0.0, "retain_drop": 0.0, "membership_tolerance": 0.0}


def with_steps(plan: Plan, **local: Any) -> Plan:
    """The plan with other `unlearning.local` settings, its best round kept."""
    changes = {"local": plan.unlearning.local.model_copy(update=local), "keep": "best"}
    return plan.model_copy(update={"unlearning": plan.unlearning.model_copy(update=changes)})


def test_unlearning_stops_at_the_first_settled_round_that_meets_the_rule(tmp_path: Path) -> None:
    model = {"name": "allcnn", "width": 0.05}  # the smaller one forgets too much, which no acceptance allows
    plan, sites = prepared(tmp_path, model=model, training={"augment": True}, request={"acceptance": EVERYTHING_PASSES})
    results = run(hurried(with_steps(plan, rounds=5)), sites, tmp_path / "run")
    assert len(results["unlearned"]["history"]) == results["unlearned"]["kept_round"] == 3
    (told,) = [event for event in events(tmp_path / "run") if event["event"] == "unlearned"]
    assert (told["rounds"], told["kept_round"], told["rule_met_on_reference"]) == (3, 3, True)


def test_the_model_goes_back_to_the_round_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlearning, "kept_round", lambda history, *_: min(len(history), 4))
    plan, sites = prepared(tmp_path, request={"acceptance": NOTHING_PASSES})
    plan = with_steps(plan, rounds=6).model_copy(update={"retrain": False})
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


def test_convergence_is_in_the_event_log(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    results = run(hurried(plan), sites, tmp_path / "run")
    rounds = [event for event in events(tmp_path / "run") if event["event"] == "unlearned_round"]
    assert [event["objective_gradient_norm"] for event in rounds] == [
        entry["objective_gradient_norm"] for entry in results["unlearned"]["history"]
    ]
    assert min(event["objective_gradient_norm"] for event in rounds) > 0
    assert set(rounds[0]["ascent"]) == {"site-2"}  # the only one that forgets
    assert 0 <= rounds[0]["metrics"]["crossing_rate"] <= 1
    assert rounds[0]["metrics"]["path_length"] > 0


def test_a_first_round_that_steps_away_is_followed_by_rounds_that_draw_back(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    plan = hurried(plan).model_copy(update={"retrain": False})
    away = plan.model_copy(update={"unlearning": plan.unlearning.model_copy(update={"negation": 4.0})})
    joint, first, second = (
        entry["metrics"]
        for name, one, count in (("joint", plan, 1), ("away", away, 2))
        for entry in run(one, sites, tmp_path / name)["unlearned"]["history"][:count]
    )
    assert first["norm"] > 4 * joint["norm"]
    assert "forget_loss" not in first  # no step was taken on it
    assert second["overshoot"] < 1  # it is below its mark


def test_judging_looks_at_reference_images_and_is_paid_for(tmp_path: Path) -> None:
    results = []
    for keep in ("last", "best"):  # each with sites of its own: they keep what they prepared
        (tmp_path / keep).mkdir()
        plan, sites = prepared(tmp_path / keep, request={"acceptance": NOTHING_PASSES}, unlearning={"keep": keep})
        results.append(run(hurried(plan), sites, tmp_path / keep / "run"))
    last, best = results
    counts = last["sites"].values()
    brief = sum(site["forget"] + site["reference"] + min(site["retain"], site["reference"]) for site in counts)
    # The deployed model, and the second of two rounds.
    assert best["unlearned"]["cost"]["passes"] - last["unlearned"]["cost"]["passes"] == 2 * brief
    assert last["unlearned"]["digest"] == best["unlearned"]["digest"]


@pytest.mark.parametrize("rule", [rule for rule in known_rules() if rule != "mean"])
def test_a_run_composes_by_every_rule(undisturbed: Json, tmp_path: Path, rule: str) -> None:
    plan, sites = prepared(tmp_path, composition=rule)
    results = run(hurried(plan), sites, tmp_path / "run")
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
    asked = asked_of(hurried(plan), sites, tmp_path / "run", AuditQuery)
    assert [list(query.candidates) for query in asked].count(["a", "b"]) == len(sites.configs)


def test_recovery_rounds_train_every_site_on_retain_images_alone(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, composition="module_swap", unlearning={"local": {"rounds": 4}})
    asked = asked_of(hurried(plan), sites, tmp_path / "run", UnlearnInstruction)
    assert {query.a_k > 0 for query in asked[: 4 * len(sites.configs)]} == {True, False}
    recovery = asked[4 * len(sites.configs) :]
    assert [(query.a_k, query.round_index) for query in recovery] == [(0.0, 2)] * len(sites.configs)


def test_each_site_takes_its_share_of_the_forget_batch(tmp_path: Path) -> None:
    plan, sites = prepared(
        tmp_path,
        request={"where": "site = site-1 or (site = site-2 and class = 1)"},
        unlearning={"local": {"forget_batch": 30, "rounds": 2}},
    )
    asked = asked_of(hurried(plan), sites, tmp_path / "run", UnlearnInstruction)[: len(sites.configs)]
    counts = [site["forget"] for site in json.loads((tmp_path / "run" / "metrics.json").read_text())["sites"].values()]
    assert [query.settings.local.forget_batch for query in asked[:2]] == [ceil(30 * n / sum(counts)) for n in counts[:2]]
    assert [query.settings.target.looks for query in asked[:2]] == [ceil(64 * n / sum(counts)) for n in counts[:2]]
    assert counts[0] > counts[1] > counts[2] == 0


def test_sites_that_forget_nothing_take_turns_in_a_resumed_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FEWEST_TURNS", 1)
    plan, sites = prepared(
        tmp_path,
        request={"where": "site = site-1 and class = 1"},
        unlearning={"local": {"retain_batch": 16, "rounds": 3}},
    )
    plan = hurried(plan)
    asked = asked_of(plan, sites, tmp_path / "run", UnlearnInstruction)
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["unlearned"]
    took_part = [entry["asked"] for entry in results["history"]]
    assert took_part == [sorted(entry["updates"]) for entry in results["history"]]
    assert sorted(took_part[:2]) == [["site-1", "site-2"], ["site-1", "site-3"]]
    assert took_part[2] == took_part[0]
    assert [query.settings.local.retain_batch for query in asked] == [8] * 6

    def stop_after_a_round() -> bool:
        log = tmp_path / "again" / "events.jsonl"
        return log.exists() and '"unlearned_round"' in log.read_text()

    with pytest.raises(Interrupted):
        run(plan, sites, tmp_path / "again", stopped=stop_after_a_round)
    again = run(plan, sites, tmp_path / "again")["unlearned"]
    assert [entry["asked"] for entry in again["history"]] == took_part
    assert again["digest"] == results["digest"]


def test_a_class_that_becomes_rarer_is_to_be_less_certain(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)  # forgets images of class 1 alone
    plan = hurried(plan)
    asked = asked_of(plan, sites, tmp_path / "shifted", UnlearnInstruction)
    target = plan.unlearning.target.model_copy(update={"label_shift": False})
    without = plan.model_copy(update={"unlearning": plan.unlearning.model_copy(update={"target": target})})
    plain = asked_of(without, sites, tmp_path / "plain", UnlearnInstruction)[0].reference
    for query in asked:
        assert all(a > b for a, b in zip(query.reference["1"], plain["1"], strict=True))
        assert all(a < b for a, b in zip(query.reference["0"], plain["0"], strict=True))
        assert query.reference["all"] == plain["all"]
    (mix,) = [event for event in events(tmp_path / "shifted") if event["event"] == "class_mix"]
    assert mix["log_odds_shift"]["1"] < 0 < mix["log_odds_shift"]["0"]


def test_a_candidate_whose_steps_diverge_is_left_out(tmp_path: Path) -> None:
    wild = {"name": "wild", "unlearning": {"local": {"learning_rate": 1e6, "clip_norm": 1e6}}}
    merges = [{"name": "both", "forget": ["wild", "calm"]}]
    plan, sites = prepared(tmp_path, candidates=[wild, {"name": "calm"}], merges=merges)
    plan = hurried(plan)
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


def test_rounds_that_nobody_watches_give_the_same_model_without_being_scored(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    watched = run(plan, sites, tmp_path / "watched")
    alone = plan.model_copy(update={"rounds": plan.rounds.model_copy(update={"watch": False})})
    asked = asked_of(alone, sites, tmp_path / "alone", AuditQuery)
    assert len(asked) == 3 * len(sites.configs)  # the deployed, the revised and the retrained model
    results = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    assert results["unlearned"]["digest"] == watched["unlearned"]["digest"]
    assert [entry["pooled"] for entry in results["unlearned"]["history"]] == [{}] * plan.unlearning.local.rounds
    told = [event["scores"] for event in events(tmp_path / "alone") if event["event"] == "unlearned_round"]
    assert told == [{}] * plan.unlearning.local.rounds
    page = write_report(tmp_path / "alone", results, alone).read_text()
    assert "Curves over the unlearning rounds" not in page
    assert "Curves over the unlearning rounds" in write_report(tmp_path / "watched", watched, plan).read_text()
