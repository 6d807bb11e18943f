from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.common.errors import RequestError
from excise.common.request import ForgetRequest
from excise.server import events
from excise.server.dashboard.compare import compare
from excise.server.dashboard.render import Renderer
from excise.server.dashboard.run_view import run_view
from excise.server.dashboard.settings import read_settings
from excise.server.verdict import verdict
from tests.server.dashboard.test_runs import kept

Copy = Callable[..., Path]
Json = dict[str, Any]
HOSTILE = "<script>alert(1)</script>"


def view(run: Path) -> Json:
    """The view of a run, which has gone through JSON."""
    told: Json = json.loads(json.dumps(run_view(run.parent, run.name), allow_nan=False))
    return told


def results(run: Path) -> Json:
    told: Json = json.loads((run / "metrics.json").read_text())
    return told


def rewrite(run: Path, change: Callable[[Json], object]) -> None:
    told = results(run)
    change(told)
    (run / "metrics.json").write_text(json.dumps(told))


# ---- a finished run ----------------------------------------------------------------------------------------------------


def test_headline_numbers_are_those_of_the_results(made: Path) -> None:
    told, shown = results(made / "one"), view(made / "one")
    head = shown["headline"]
    assert head["of"] == "result"
    assert head["forget"]["value"] == told["unlearned"]["pooled"]["forget_accuracy"]
    assert head["forget"]["target"] == told["retrained"]["pooled"]["forget_accuracy"]
    retain = [told[model]["pooled"]["retain_accuracy"] for model in ("original", "unlearned")]
    assert head["retain"]["change"] == retain[1] - retain[0]
    assert head["retain"]["limit"] == -0.01
    interval = told["verification"]["membership_auc"]["unlearned"]
    assert [head["membership"][key] for key in ("value", "low", "high")] == [interval[key] for key in ("value", "low", "high")]
    worst = told["verification"]["worst_site"]["held_out_accuracy"]
    assert [head["worst_site"][key] for key in ("site", "change", "low")] == [worst[key] for key in ("site", "change", "low")]
    cost = told["unlearned"]["cost"]
    assert (head["cost"]["images"], head["cost"]["seconds"]) == (cost["passes"], cost["seconds"])
    assert head["cost"]["images_share"] == cost["passes"] / told["retrained"]["cost"]["passes"]


def test_gates_are_the_verdict(made: Path) -> None:
    run = made / "one"
    request, shown = read_settings(run).request, view(run)
    assert isinstance(request, ForgetRequest)
    decided = verdict(results(run), request)
    assert [(gate["name"], gate["rule"], gate["passed"]) for gate in shown["gates"]] == [
        (check.name, check.rule, check.passed) for check in decided.checks
    ]
    assert shown["accepted"] is decided.accepted
    measured = [None if math.isnan(check.measured) else check.measured for check in decided.checks]
    assert [gate["measured"] for gate in shown["gates"]] == measured


def test_gates_tell_changes_with_their_sign_and_what_is_judged(copy: Copy) -> None:
    run = copy()

    def change(told: Json) -> None:
        told["original"]["pooled"] |= {"held_out_accuracy": 0.5, "retain_accuracy": 0.5}
        told["unlearned"]["pooled"] |= {"held_out_accuracy": 0.793, "retain_accuracy": 0.48, "forget_accuracy": 0.585}
        told["unlearned"]["pooled"]["membership_auc"] = 0.434
        told["retrained"]["pooled"] |= {"forget_accuracy": 0.453, "membership_auc": 0.5}

    rewrite(run, change)
    said = {gate["name"]: gate["said"] for gate in view(run)["gates"]}
    assert said.pop("held-out accuracy lost at the worst site").startswith("held-out accuracy at the worst site: ")
    assert said == {
        "held-out accuracy lost": "held-out accuracy: +0.293 (may fall by 0.010 at most)",
        "retain accuracy lost": "retain accuracy: −0.020 (may fall by 0.010 at most)",
        "distance of the membership AUC from that of unseen images": (
            "distance of the membership AUC from that of unseen images: 0.066 (at most 0.050)"
        ),
        "over-unlearning: forget accuracy too low": (
            "forget accuracy against the retrained model's: +0.132 (may lie 0.050 below at most)"
        ),
    }
    tiles = Renderer("runs", True, False).text("_headline.html", view=view(run), decided=[])
    text = " ".join(re.sub(r"<[^>]+>", " ", tiles).split())
    assert "Forget accuracy (target 0.453) 0.585 ✓ at most 0.050 below it" in text
    assert "Retain Δ (may fall by 0.010) −0.020 ✗" in text
    assert "95 % interval" in text
    rewrite(run, lambda told: told.pop("retrained"))
    (low,) = [gate["said"] for gate in view(run)["gates"] if gate["name"].startswith("over-")]
    assert low.startswith("forget accuracy against that on unseen images of its classes: ")


def test_series_follow_the_rounds(made: Path) -> None:
    shown, told = view(made / "one")["series"], results(made / "one")
    (one,) = shown["candidates"]
    history = told["unlearned"]["history"]
    assert one["rounds"] == [1, 2]
    for key in ("forget_accuracy", "retain_accuracy", "held_out_accuracy", "membership_auc"):
        assert one[key] == [round(entry["pooled"][key], 4) for entry in history]
        assert one["last"][key] == {"round": 2, "value": one[key][1]}
        assert shown["original"][key] == told["original"]["pooled"][key]
        assert shown["retrained"][key] == told["retrained"]["pooled"][key]
    assert one["best"]["retain_accuracy"]["value"] == max(one["retain_accuracy"])
    assert one["crossing_rate"] == [entry["metrics"]["crossing_rate"] for entry in history]
    assert one["objective_gradient_norm"] == [entry["objective_gradient_norm"] for entry in history]
    assert one["kept_round"] == 2


def test_candidates_with_the_front_and_the_chosen(made: Path) -> None:
    told, shown = results(made / "two"), view(made / "two")["candidates"]
    assert [one["name"] for one in shown] == ["gentle", "nearest"]
    for one in shown:
        of = told["candidates"][one["name"]]
        assert (one["on_front"], one["chosen"], one["digest"]) == (of["on_front"], of["chosen"], of["digest"])
        assert one["forget_gap"] == of["objectives"]["forget gap"]
        assert one["retain_accuracy"] == of["pooled"]["retain_accuracy"]
    assert sum(one["chosen"] for one in shown) == 1
    (alone,) = view(made / "one")["candidates"]
    assert (alone["name"], alone["chosen"], alone["on_front"]) == ("unlearned", True, None)


def test_heat_tells_better_from_more(copy: Copy) -> None:
    run = copy()

    def change(told: Json) -> None:
        for model, (retain, ece, forget) in (("original", (0.9, 0.1, 1.0)), ("unlearned", (0.8, 0.05, 0.7))):
            of = told[model]["sites"]["site-2"]
            of |= {"retain_accuracy": retain, "held_out_ece": ece, "forget_accuracy": forget}
        told["retrained"]["pooled"]["forget_accuracy"] = 0.75

    rewrite(run, change)
    heat = view(run)["heat"]
    cells = dict(zip([one["key"] for one in heat["metrics"]], heat["sites"][1]["cells"], strict=True))
    assert heat["sites"][1]["site"] == "site-2"
    assert (round(cells["retain_accuracy"]["change"], 6), round(cells["retain_accuracy"]["gain"], 6)) == (-0.1, -0.1)
    assert (round(cells["held_out_ece"]["change"], 6), round(cells["held_out_ece"]["gain"], 6)) == (-0.05, 0.05)
    assert (round(cells["forget_accuracy"]["change"], 6), round(cells["forget_accuracy"]["gain"], 6)) == (-0.3, 0.2)
    assert cells["membership_auc"] == {"before": None, "after": None, "change": None, "gain": None, "below": None}


def test_what_was_counted_on_too_few_images_is_not_shown(copy: Copy) -> None:
    run = copy()

    def change(told: Json) -> None:
        told["unlearned"]["sites"]["site-1"] |= {"held_out_images": 2.0, "held_out_accuracy": 0.5}

    rewrite(run, change)
    cell = view(run)["heat"]["sites"][0]["cells"][1]
    assert cell == {"before": None, "after": None, "change": None, "gain": None, "below": 3}


def test_sites_and_digests(made: Path) -> None:
    shown, told = view(made / "one"), results(made / "one")
    assert [one["site"] for one in shown["sites"]] == ["site-1", "site-2", "site-3"]
    assert all(one["counts"] == told["sites"][one["site"]] for one in shown["sites"])
    assert {one["state"] for one in shown["sites"]} == {"answered"}
    assert shown["sites"][1]["last_round"] == {"candidate": "unlearned", "round": 2}
    assert shown["digests"] == {"before": told["original"]["digest"], "after": told["unlearned"]["digest"]}
    assert shown["problems"] == []
    assert shown["waits"] is None


def test_digests_of_the_evidence(copy: Copy) -> None:
    run = copy()
    described = {"model_before": {"digest": "aa", "version": 1}, "model_after": {"digest": "bb"}}
    (run / "evidence.json").write_text(json.dumps({"document": {"description_of_modification": described}}))
    assert view(run)["digests"] == {"before": "aa", "after": "bb"}
    (run / "evidence.json").write_text('{"document": []}')
    assert view(run)["digests"]["before"] == results(run)["original"]["digest"]
    rewrite(run, lambda told: told["original"].pop("digest"))
    assert view(run)["digests"]["before"] is None


# ---- a run under way -----------------------------------------------------------------------------------------------------


def test_before_there_are_results_the_last_round_speaks(copy: Copy) -> None:
    run = copy("two")
    kept(run, "chosen")
    (run / "metrics.json").unlink()
    shown = view(run)
    assert (shown["gates"], shown["accepted"]) == ([], None)
    assert shown["headline"]["of"] == "round 2"
    assert shown["headline"]["forget"]["value"] == shown["latest"]["forget_accuracy"]
    assert shown["headline"]["retain"]["change"] is None
    assert shown["headline"]["forget"]["passed"] is None
    assert shown["headline"]["cost"]["seconds"] is None
    assert [(one["name"], one["rounds"], one["chosen"]) for one in shown["candidates"]] == [
        ("gentle", 1, None),
        ("nearest", 2, None),
    ]
    assert shown["series"]["original"] is None


def test_states_of_sites(copy: Copy) -> None:
    run = copy()
    kept(run, "unlearned_round")
    (run / "checkpoints" / "unlearned.rounds.jsonl").unlink()
    (run / "plan.toml").write_text(
        'site_names = ["site-1", "site-2", "site-3", "site-4"]\n' + (run / "config.toml").read_text()
    )
    since = "2026-01-01T10:00:00+00:00"
    events.add(run, "refused", round="unlearned", number=1, site="site-1", code="forbidden", incident="i1")
    events.add(run, "left", site="site-2")
    events.add(run, "late", round="unlearned", number=1, site="site-3", seconds=1.0)
    events.add(run, "awaiting", round="unlearned", number=1, sites=["site-3"], since=since)
    shown = view(run)
    states = {one["site"]: (one["state"], one["late"]) for one in shown["sites"]}
    assert states == {"site-1": ("refused", 0), "site-2": ("away", 0), "site-3": ("awaited", 1), "site-4": ("asked", 0)}
    assert shown["sites"][0]["refused"] == {"forbidden": 1}
    assert shown["sites"][0]["last_refusal"]["incident"] == "i1"
    assert shown["sites"][3]["counts"] is None
    assert shown["waits"] == {"sites": ["site-3"], "since": since, "round": "unlearned", "number": 1}
    events.add(run, "refused", round="unlearned", number=1, site="site-3", code="no_answer", incident="")
    events.add(run, "returned", site="site-2")
    states = {one["site"]: one["state"] for one in view(run)["sites"]}
    assert (states["site-2"], states["site-3"]) == ("answered", "silent")


def test_a_site_that_answers_after_its_refusal_has_answered(copy: Copy) -> None:
    run = copy()
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '"unlearned_round"' in line)
    refused = json.loads(lines[at]) | {"event": "refused", "site": "site-2", "code": "no_answer"}
    bare = {key: refused[key] for key in ("at", "event", "site", "code")} | {"round": "unlearned", "number": 1}
    (run / "events.jsonl").write_text("".join([*lines[: at + 1], json.dumps(bare) + "\n", *lines[at + 1 :]]))
    site = view(run)["sites"][1]
    assert (site["state"], site["refused"]) == ("answered", {"no_answer": 1})


def test_a_round_that_is_held_again_replaces_what_followed(copy: Copy) -> None:
    run = copy()
    told = next(event for event in events.events_of(run) if event["event"] == "unlearned_round")
    details = {key: value for key, value in told.items() if key not in ("at", "event")}
    events.add(run, "unlearned_round", **details | {"scores": {"forget_accuracy": 0.25}})
    (one,) = view(run)["series"]["candidates"]
    assert (one["rounds"], one["forget_accuracy"], one["retain_accuracy"]) == ([1], [0.25], [None])


def test_of_a_class_less_is_better_and_near_to_nothing_is_best(copy: Copy) -> None:
    run = copy()
    text = (run / "config.toml").read_text()
    text = text.replace('kind = "samples"', 'kind = "class"').replace("site = site-2 and class = 1", "class = 1")
    (run / "config.toml").write_text(text)
    shown = view(run)
    assert (shown["headline"]["forget"]["target"], shown["headline"]["forget"]["at_most"]) == (0.02, True)
    assert shown["headline"]["membership"]["slack"] is None
    (one,) = shown["series"]["candidates"]
    assert one["best"]["forget_accuracy"]["value"] == min(one["forget_accuracy"])


# ---- what is wrong -----------------------------------------------------------------------------------------------------


def test_problems_are_told(copy: Copy) -> None:
    run = copy()
    with (run / "events.jsonl").open("ab") as file:
        file.write(b"nonsense\n" + b'{"at": 5}\n')
    events.add(run, HOSTILE)
    events.add(run, "checkpoint_damaged", phase="unlearned", rounds=1)
    events.add(run, "not_measured", what="resurfacing", codes=["forbidden"])
    events.add(run, "candidate_failed", candidate="c", codes=["diverged"])
    (run / "checkpoints" / "unlearned.damaged.safetensors").write_bytes(b"")
    events.add(run, "failed", error="StorageError", message=f"disk full {HOSTILE}", exit_code=7)
    assert view(run)["problems"] == [
        "2 malformed lines in events.jsonl",
        f"1 × event of an unknown kind: {HOSTILE}",
        "the checkpoint of unlearned was damaged: taken up after round 1",
        "set aside as damaged: unlearned.damaged.safetensors",
        "not measured: resurfacing (forbidden)",
        "the candidate c diverged (diverged)",
        f"failed: disk full {HOSTILE}",
    ]


def test_a_failure_names_files_without_their_paths(copy: Copy) -> None:
    run = copy()
    for path, told in (
        (run / "checkpoints" / "one.safetensors", "checkpoints/one.safetensors"),
        ("/srv/a/b.json", "b.json"),
        ("'/srv/an old/b.json'", "'b.json'"),
    ):
        events.add(run, "failed", error="StorageError", message=f"cannot write {path}: disk full", exit_code=5)
        assert view(run)["problems"] == [f"failed: cannot write {told}: disk full"]


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"original": NaN}', "[" * 50_000, '"\\ud800"'])
def test_results_that_cannot_be_read_are_a_problem(text: str, copy: Copy) -> None:
    run = copy()
    (run / "metrics.json").write_text(text)
    shown = view(run)
    assert (shown["gates"], len(shown["problems"])) == ([], 1)
    assert "metrics.json" in shown["problems"][0]


def test_a_number_too_large_to_show_is_none_and_a_problem(copy: Copy) -> None:
    run = copy()
    text = (run / "metrics.json").read_text()
    scores = results(run)["unlearned"]["pooled"]
    value = json.dumps(scores["forget_accuracy"])
    head, tail = text.split('"unlearned": {', 1)
    (run / "metrics.json").write_text(
        head + '"unlearned": {' + tail.replace(f'"forget_accuracy": {value}', '"forget_accuracy": 1e999', 1)
    )
    shown = view(run)
    assert shown["headline"]["forget"]["value"] is None
    assert shown["problems"] == ["metrics.json: unlearned.pooled is not as it should be"]


JUNK = st.sampled_from([10**400, None, True, 5, "x", HOSTILE, [], [1], {}, {"a": "b"}, {"a": {"b": []}}, 1e99])


def spoil(told: Json, data: st.DataObject) -> None:
    """Put something else in the place of one value, anywhere in it."""
    while told:
        key = data.draw(st.sampled_from(sorted(told)))
        if not isinstance(told[key], dict) or data.draw(st.booleans()):
            told[key] = deepcopy(data.draw(JUNK))
            return
        told = told[key]


@given(data=st.data())
def test_no_value_in_the_results_breaks_the_view(
    data: st.DataObject, made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = results(made / "two")
    for _ in range(data.draw(st.integers(1, 3))):
        spoil(told, data)
    run = tmp_path_factory.mktemp("junk") / "run"
    run.mkdir()
    for name in ("config.toml", "events.jsonl"):
        (run / name).write_bytes((made / "two" / name).read_bytes())
    (run / "metrics.json").write_text(json.dumps(told))
    view(run)
    json.dumps(compare(run.parent, "run", "run/gentle"), allow_nan=False)


@given(data=st.data())
def test_no_value_in_the_events_breaks_the_view(
    data: st.DataObject, made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("junk") / "run"
    run.mkdir()
    told = events.events_of(made / "two")
    told.append({"at": told[0]["at"], "event": "awaiting", "round": "audit", "sites": ["a"], "since": told[0]["at"]})
    told.append({"at": told[0]["at"], "event": "refused", "round": "unlearned", "number": 1, "site": "a", "code": "c"})
    told.append({"at": told[0]["at"], "event": "joined", "site": "b", "counts": {"train": 1}})
    data.draw(st.randoms(use_true_random=False)).shuffle(told)
    for event in told:
        if data.draw(st.booleans()):
            spoil(event, data)
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    (run / "config.toml").write_bytes((made / "two" / "config.toml").read_bytes())
    view(run)


@given(name=st.sampled_from(["one", "two"]), share=st.floats(0, 1), results_too=st.booleans())
def test_any_beginning_of_a_run_has_a_view(
    name: str, share: float, results_too: bool, made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("prefix") / "run"
    run.mkdir()
    content = (made / name / "events.jsonl").read_bytes()
    (run / "events.jsonl").write_bytes(content[: round(share * len(content))])
    for other in ("config.toml", *(["metrics.json"] if results_too else [])):
        (run / other).write_bytes((made / name / other).read_bytes())
    assert view(run)["problems"] == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder", "none", "../x"):
        with pytest.raises(RequestError, match="no run"):
            run_view(tmp_path, name)


def test_a_bare_run_has_a_view(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").write_bytes(b"")
    shown = view(tmp_path / "run")
    assert shown["problems"] == ["no plan.toml and no config.toml"]
    assert (shown["sites"], shown["request"], shown["run"]["state"]) == ([], None, "not started")
