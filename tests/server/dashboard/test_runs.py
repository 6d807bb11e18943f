from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from excise.common.errors import RequestError
from excise.server import events
from excise.server.carrying import LOCK, carrying_out
from excise.server.dashboard.runs import QUIET, Runs, moment, runs_of
from excise.server.dashboard.settings import read_settings, shown

Copy = Callable[..., Path]


def kept(run: Path, until: str) -> None:
    """Leave of the run's events those before the first of the kind `until`."""
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if json.loads(line)["event"] == until)
    (run / "events.jsonl").write_text("".join(lines[:number]))


def test_a_card_of_each_run_the_latest_first(made: Path) -> None:
    two, one = runs_of(made)
    assert (one.name, two.name) == ("one", "two")
    assert (one.state, one.kind, one.maker, one.request, one.seed) == ("finished", "samples", "simulated", "tiny", 0)
    assert one.scope == "images: site = site-2 and class = 1"
    assert (one.started_at or "") < (one.last_at or "") < (two.started_at or "")
    assert (one.malformed, one.problem, one.waits_for, one.stale) == (0, "", (), False)
    assert two.seed == 1
    json.dumps([asdict(card) for card in (one, two)], allow_nan=False)


def test_no_folder_and_an_empty_one_hold_no_runs(tmp_path: Path) -> None:
    assert runs_of(tmp_path / "none") == []
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").write_text("")
    assert runs_of(tmp_path) == []


def test_a_run_that_did_not_begin_comes_first(copy: Copy) -> None:
    copy("one")
    (copy("two") / "events.jsonl").unlink()
    first, second = runs_of(copy("one", "three").parent)[:2]
    assert (first.name, first.state, first.phase, first.request) == ("two", "not started", "", "tiny")
    assert second.state == "finished"


@pytest.mark.parametrize(
    ("until", "phase", "of"),
    [
        ("status", "asking the sites", (None, None)),
        ("class_mix", "training", (2, 2)),
        ("reference", "reference", (None, None)),
        ("unlearned_round", "unlearning", (0, 2)),
        ("unlearned", "unlearning", (2, 2)),
        ("verified", "retraining", (2, 2)),
        ("finished", "verification", (None, None)),
    ],
)
def test_phase_and_round(until: str, phase: str, of: tuple[int | None, int | None], copy: Copy) -> None:
    run = copy()
    kept(run, until)
    (card,) = runs_of(run.parent)
    assert (card.state, card.phase, (card.round, card.rounds)) == ("running", phase, of)


def test_a_model_that_was_deployed_is_not_trained(copy: Copy) -> None:
    run = copy()
    kept(run, "class_mix")
    (run / "config.toml").rename(run / "plan.toml")
    (run / "plan.toml").write_text('deployed = "m.safetensors"\n' + (run / "plan.toml").read_text())
    (card,) = runs_of(run.parent)
    assert (card.phase, card.maker) == ("audit", "deployed")


def test_the_last_attempt_tells_the_state(copy: Copy) -> None:
    run, runs = copy(), Runs(copy("two").parent)
    events.add(run, "started", request="tiny", seed=0)
    assert next(card for card in runs.cards() if card.name == "one").state == "running"
    events.add(run, "failed", error="QuorumError", message="too few", exit_code=6)
    card = next(card for card in runs.cards() if card.name == "one")
    assert (card.state, card.phase) == ("failed", "failed")
    events.add(run, "started", request="tiny", seed=0)
    events.add(run, "finished", digest="d")
    assert next(card for card in runs.cards() if card.name == "one").state == "finished"


def test_a_run_without_a_sign_is_stale(copy: Copy) -> None:
    run = copy()
    kept(run, "unlearned")
    (card,) = runs_of(run.parent)
    last = moment(card.last_at or "")
    os.utime(run / "checkpoints", (last + 5, last + 5))  # training tells no events, but writes these
    assert not runs_of(run.parent, now=last + 5 + QUIET)[0].stale
    assert runs_of(run.parent, now=last + 6 + QUIET)[0].stale


@pytest.mark.parametrize(("until", "told"), [("unlearned", "running"), ("started", "not started")])
def test_a_run_that_nobody_carries_out_is_stopped(copy: Copy, until: str, told: str) -> None:
    run = copy()
    kept(run, until)
    runs = Runs(run.parent)
    before = runs.cards()[0]
    assert before.state == told  # nobody ever took its lock: what the events tell
    with carrying_out(run):
        assert runs.cards()[0] == before
    after = runs.cards()[0]
    assert (after.state, after.waits_for, after.stale) == ("stopped", (), False)
    assert (after.phase, after.round) == (before.phase, before.round)
    assert not runs.cards(now=moment(after.last_at) + 2 * QUIET if after.last_at else None)[0].stale


def test_a_run_that_says_it_was_stopped_is_until_somebody_goes_on(copy: Copy) -> None:
    run = copy()
    kept(run, "unlearned")
    events.add(run, "stopped")
    runs = Runs(run.parent)
    card = runs.cards()[0]
    assert (card.state, card.phase, card.malformed, card.round) == ("stopped", "unlearning", 0, 2)
    with carrying_out(run):
        assert runs.cards()[0].state == "running"
    assert runs.cards()[0].state == "stopped"
    events.add(run, "started", request="tiny", seed=0)
    events.add(run, "finished", digest="d")
    assert runs.cards()[0].state == "finished"


def test_who_is_awaited_until_something_comes(copy: Copy) -> None:
    run = copy()
    kept(run, "unlearned")
    since = "2026-01-01T10:00:00+00:00"
    events.add(run, "awaiting", round="unlearned", number=2, sites=["site-2"], since=since)
    runs = Runs(run.parent)
    assert (runs.cards()[0].waits_for, runs.cards()[0].waits_since) == (("site-2",), since)
    events.add(run, "refused", round="unlearned", number=2, site="site-2", code="no_answer", incident="")
    assert runs.cards()[0].waits_for == ()
    events.add(run, "awaiting", round="unlearned", number=2, sites=["site-2"], since=since)
    with carrying_out(run):
        assert runs.cards()[0].waits_for == ("site-2",)
    assert (runs.cards()[0].state, runs.cards()[0].waits_for) == ("stopped", ())  # nobody would hear it


def test_only_what_changed_is_read(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy()
    copy("two")
    runs = Runs(run.parent)
    before = runs.cards()
    events.add(run, "started", request="tiny", seed=0)
    opened: list[Path] = []
    path_open, read_text = Path.open, Path.read_text
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self) or path_open(self, *a, **k))
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: opened.append(self) or read_text(self, *a, **k))
    after = {card.name: card for card in runs.cards()}
    assert opened == [run / "events.jsonl", run / LOCK]
    assert after["two"] == before[0]
    assert after["one"].state == "running"


def test_runs_come_and_go(copy: Copy) -> None:
    run = copy()
    runs = Runs(run.parent)
    assert len(runs.cards()) == 1
    copy("two")
    assert len(runs.cards()) == 2
    shutil.rmtree(run)
    assert [card.name for card in runs.cards()] == ["two"]


@pytest.mark.parametrize("name", ["", ".", "..", "../runs/one", "one/", "/etc", "a\0b", "none", "o\nne", "\ud800", "x" * 300])
def test_what_names_no_run_is_refused(name: str, copy: Copy) -> None:
    with pytest.raises(RequestError, match="no run"), Runs(copy().parent).run(name):
        pass


def test_bad_settings_are_a_problem_and_no_error(copy: Copy) -> None:
    run = copy()
    for text, told in (
        ("= nonsense", "cannot be read"),
        ("seed = 1", "the request"),
        ('[request]\nid = "UPPER"', "the request"),
        ("candidates = 5\nsite_names = 7\ntraining = []\nunlearning = 'x'", "the request"),
    ):
        (run / "config.toml").write_text(text)
        (card,) = runs_of(run.parent)
        assert told in card.problem
        assert (card.state, card.request, card.kind, card.scope) == ("finished", "tiny", "", "")
    (run / "config.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in runs_of(run.parent)[0].problem
    (run / "config.toml").unlink()
    assert runs_of(run.parent)[0].problem == "no plan.toml and no config.toml"


def test_settings_are_read_again_when_they_change(copy: Copy) -> None:
    run = copy()
    runs = Runs(run.parent)
    assert runs.cards()[0].kind == "samples"
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('kind = "samples"', 'kind = "device"'))
    assert runs.cards()[0].kind == "device"


def test_values_that_name_a_patient_are_not_shown() -> None:
    canary = "CANARY-4711"
    for field in ("PatientID", "patient", "item", "StudyInstanceUID", "AccessionNumber"):
        assert canary not in shown(f"class = 1 and not ({field} = {canary})")
    assert shown("PatientID in @withdrawn or StationName = MR7") == "PatientID in @withdrawn or StationName = MR7"
    assert shown("= broken") == "a predicate that cannot be read"


def test_no_patient_in_flattened_settings(copy: Copy) -> None:
    run = copy()
    text = (run / "config.toml").read_text().replace("site = site-2 and class = 1", "patient = CANARY")
    (run / "config.toml").write_text(text.replace("forgotten = []", 'forgotten = ["PatientID = CANARY"]'))
    settings = read_settings(run)
    assert settings.request is not None
    assert "CANARY" not in json.dumps(settings.flat()) + settings.scope
