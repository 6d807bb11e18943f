"""What the coordinator's commands say: refused before anything is asked, nothing cut off, numbers that people read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from excise.cli import app
from excise.common.errors import ConfigError, DataError
from excise.common.models import ModelSpec, build_model, known_models
from excise.common.request import ForgetRequest, RequestKind
from excise.common.signing import public_hex, read_key
from excise.common.weights import save_weights, snapshot
from excise.server import members
from excise.server.cli.models import ARCHITECTURES
from excise.server.cli.shared import local, results
from excise.server.deploy import SERVER, check_store
from excise.server.evidence import seal, verify
from excise.server.launch import prepare
from excise.server.life import State
from excise.server.requests import draft, move, statuses
from excise.server.setup import SIGNING_KEY
from excise.server.store.leases import held
from excise.server.unlearning import Reference
from tests.candidates import MET, ran, signed
from tests.coordinators import DEVICE, OTHER, Network, network, ready

Excise = Callable[..., Any]
PAGE = Path(__file__).parents[2] / "docs" / "coordinator.md"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    with ready(tmp_path) as one:
        monkeypatch.setenv("EXCISE_SERVER", str(one.toml))
        yield one


# ---- every line of the log before what is grave ---------------------------------------------------------------------------


def replaced(made: Network, name: str, by: str) -> None:
    """Let the log tell of somebody else in its first line."""
    first, rest = made.store.log.read_text().split("\n", 1)
    made.store.log.write_text(f"{first.replace(name, by)}\n{rest}")


def test_a_line_altered_in_the_middle_stops_what_is_grave_and_nothing_else(
    made: Network, excise: Excise, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ran(made, DEVICE)
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a", "b")
    monkeypatch.setattr("excise.common.supervisor.Supervisor.run", lambda self, first: first())
    for command in (["up"], ["verify", run, "--by", "Ada"], ["promote", run, "--by", "Ada", "--why", "it forgot"]):
        replaced(made, "tests", "nobody")
        _, _, told = excise("server", "audit", "verify")
        assert "line 1: the line was altered" in told
        assert excise("server", *command) == (2, "", told)
        assert excise("server", "invite", f"c-{command[0]}")[0] == 0  # its end is right, and more a change does not look at
        replaced(made, "nobody", "tests")
        code, _, err = excise("server", *command)
        assert code == 0, err
    assert made.store.log_faults() == []


def test_a_log_that_was_taken_away_is_missed_and_one_that_was_never_begun_is_not(made: Network, tmp_path: Path) -> None:
    with network(tmp_path / "new") as new:
        assert not new.store.log.exists()
        new.store.check_log()
    made.store.log.unlink()
    with pytest.raises(DataError, match="was taken away"):
        made.store.check_log()


def test_a_line_whose_writer_was_ended_stops_nothing(made: Network) -> None:
    with made.store.log.open("a") as log:
        log.write('{"at": "2026')
    assert made.store.log_faults()
    made.store.check_log()


# ---- keys -----------------------------------------------------------------------------------------------------------------


def test_keys_are_what_evidence_is_checked_with(made: Network, excise: Excise) -> None:
    members.invite(made.store, made.folder, made.config, "c", "tests")
    code, out, err = excise("server", "keys", "--json")
    assert code == 0, err
    own = public_hex(read_key(made.folder / SIGNING_KEY))
    assert json.loads(out) == {"coordinator": own, **{name: made.keys(name)[0].signing for name in "ab"}}
    run = ran(made, DEVICE)
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a", "b")
    told = excise("server", "keys")[1].split()
    for name in "ab":
        assert excise("site", "keys", "--site", made.sites[name])[1].strip() in told
        assert json.loads(excise("site", "keys", "--json", "--site", made.sites[name])[1]) == {
            name: made.keys(name)[0].signing
        }
    given = [part for one in told for part in ("--key", one)]
    code, out, err = excise("evidence", "verify", made.config.runs / run / "evidence.json", *given)
    assert (code, out.count("the one that you know"), "only you can know" in out) == (0, 3, False), err


def test_a_site_that_nobody_compared_has_no_key_to_tell(made: Network, excise: Excise) -> None:
    members.revoke(made.store, "b", "tests")
    assert json.loads(excise("server", "keys", "--json")[1]).keys() == {"coordinator", "a"}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("c=" + "ab" * 32, "no 'c' is in the evidence; expected one of coordinator, a, b"),
        ("a=abc", "64 digits"),
        ("a=" + "xy" * 32, "64 digits"),
        ("a", "64 digits"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused(made: Network, excise: Excise, key: str, reason: str) -> None:
    run = ran(made, DEVICE)
    seal(made.store, made.folder, made.config, run)
    code, out, err = excise("evidence", "verify", made.config.runs / run / "evidence.json", "--key", key)
    assert (code, out, reason in err) == (2, "", True), err


def test_evidence_that_waits_for_signatures_is_told_from_what_was_altered(made: Network, excise: Excise) -> None:
    run = ran(made, DEVICE)
    seal(made.store, made.folder, made.config, run)
    file = made.config.runs / run / "evidence.json"
    code, out, err = excise("evidence", "verify", file)
    assert (code, "✗ a: no signature" in out) == (4, True)
    assert "is not signed yet by a, b; what is signed is as it was signed" in err
    pack = json.loads(file.read_text())
    for change in ({"signatures": []}, {"document": pack["document"] | {"made_at": "later"}}):
        file.write_text(json.dumps(pack | change))
        code, _, err = excise("evidence", "verify", file)
        assert (code, "is not as it was signed" in err) == (2, True)


# ---- lists ----------------------------------------------------------------------------------------------------------------


def test_lists_of_80_columns_cut_nothing_off(made: Network, excise: Excise, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "scanner-of-the-third-floor-retired"
    long = ForgetRequest(id=name, kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")
    monkeypatch.setattr(results, "_width", 80)
    tried = {"gentle-then-thorough": {"pooled": MET, "chosen": True, "on_front": True, "digest": "ab" * 32}}
    run = ran(made, long, candidates=tried)
    folded = "an-id-that-no-terminal-of-eighty-columns-could-show-in-one-line"
    draft(made.store, ForgetRequest(id=folded, kind=RequestKind.DEVICE, where="StationName = MR8", reason="x"), (), "Ada")
    code, out, err = excise("server", "requests", "list")
    assert code == 0, err
    assert "…" not in out
    assert "StationName" not in out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert folded in "".join(row[0] for row in cells)
    assert [cell for row in cells if (cell := row[4])] == [local(one.since) for one in statuses(made.store)]
    assert f"│ {name[:31]} │ device │ running │" in out  # as much of it as the others leave
    out = excise("server", "candidates", run)[1]
    assert "…" not in out
    assert "│ gentle-then-thorough │ ✓" in out
    assert "│ 0.500  │ 0.900  │ 0.900    │ 0.500 │" in out
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a", "b")
    verify(made.store, made.folder, made.config, run, "Ada")
    assert excise("server", "promote", run, "--by", "Ada", "--why", "it forgot")[0] == 0
    out = excise("server", "models")[1]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert ["".join(row[i] for row in cells) for i in (3, 4)] == [f"{name}–", f"{name}–"]  # folded, not cut off
    assert max(map(len, out.splitlines())) <= 80


# ---- settings -------------------------------------------------------------------------------------------------------------


def test_the_pages_file_of_settings_is_one(made: Network, tmp_path: Path, excise: Excise) -> None:
    (text,) = re.findall(r"```toml\n(\[unlearning\.local\].*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "careful.toml").write_text(text)
    made.approved(DEVICE)
    folder = prepare(made.store, made.folder, made.config, ["mr7"], tmp_path / "careful.toml", 0, "Ada")
    plan = (folder / "plan.toml").read_text()
    assert all(told in plan for told in ("rounds = 6", "steps = 10", "deadline = 1800", "quorum = 0.75", "resamples = 2000"))
    assert "resurfacing = true" in plan  # what the file does not name stays


# ---- models ---------------------------------------------------------------------------------------------------------------


def test_the_help_lists_the_architectures_that_there_are() -> None:
    assert known_models() == ARCHITECTURES


@pytest.mark.parametrize("wrong", [{"width": 0.1}, {"classes": 3}, {"name": "resnet18"}, {"channels": 3}])
def test_a_model_of_another_kind_is_told_in_one_line(
    made: Network, tmp_path: Path, excise: Excise, wrong: dict[str, Any]
) -> None:
    save_weights(snapshot(build_model(ModelSpec(name="allcnn", classes=2, size=16, width=0.05))), tmp_path / "m.safetensors")
    told = {"name": "allcnn", "classes": 2, "size": 16, "width": 0.05, "channels": 1} | wrong
    options = [part for key, value in told.items() for part in (f"--{key if key != 'name' else 'model'}", value)]
    code, _, err = excise("server", "model", tmp_path / "m.safetensors", *options, "--by", "Ada")
    assert (code, len(err.splitlines()), "check --model, --classes, --size, --channels, --width" in err) == (2, 1, True), err
    assert "expected (" in err or "has no tensor '" in err


# ---- asked and refused ----------------------------------------------------------------------------------------------------


def test_a_site_that_did_not_join_is_refused_before_anything_is_asked(made: Network) -> None:
    members.invite(made.store, made.folder, made.config, "c", "tests")
    for name, reason in (("c", "'c' is invited: it has to join"), ("nobody", "no site 'nobody'")):
        done = CliRunner().invoke(app, ["server", "admit", name], input="never\nread\n")
        assert reason in str(done.exception)
        assert "Fingerprint" not in done.output
    told = made.keys("a")[0].fingerprint
    done = CliRunner().invoke(app, ["server", "admit", "a"], input=f"{told}\nAda\n")
    assert (done.exit_code, "Fingerprint, as told" in done.output, "Your name" in done.output) == (0, True, True)


def test_a_request_at_its_end_is_not_drafted_again(made: Network, tmp_path: Path, excise: Excise) -> None:
    (tmp_path / "mr7.toml").write_text(DEVICE.to_toml())
    for _ in range(2):
        code, _, err = excise("server", "requests", "draft", tmp_path / "mr7.toml", "--by", "Ada")
        assert (code, "waits for a, b" in err) == (0, True)
    move(made.store, ["mr7"], State.REJECTED, "Ada", "a mistake")
    code, _, err = excise("server", "requests", "draft", tmp_path / "mr7.toml", "--by", "Ada")
    assert (code, "'mr7' is rejected" in err, "choose another id" in err) == (2, True, True)


def test_a_request_that_names_patients_is_drafted_only_when_it_is_said(made: Network, tmp_path: Path, excise: Excise) -> None:
    named = OTHER.model_copy(update={"kind": RequestKind.PATIENTS, "where": "PatientID = CANARY-1"})
    (tmp_path / "mr1.toml").write_text(named.to_toml())
    command = ("server", "requests", "draft", tmp_path / "mr1.toml", "--by", "Ada")
    code, _, err = excise(*command)
    assert (code, "PatientID in @NAME" in err, "CANARY" in err, statuses(made.store)) == (2, True, False, []), err
    code, _, err = excise(*command, "--names-patients")
    assert (code, statuses(made.store)[0].request) == (0, named), err


def test_a_second_coordinator_is_told_that_it_is_up(made: Network, excise: Excise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.server.deploy.check_store", partial(check_store, patience=1.0))
    with held(made.store, SERVER, beat=0.05):
        code, _, err = excise("server", "up")
    assert (code, "it is up already" in err) == (2, True), err


# ---- numbers --------------------------------------------------------------------------------------------------------------


def test_what_is_missed_is_told_in_three_decimals(made: Network) -> None:
    run = ran(made, DEVICE)
    path = made.config.runs / run / "metrics.json"
    told = json.loads(path.read_text())
    told["unlearned"]["pooled"] |= {"membership_auc": 0.25 - 6e-17, "retain_accuracy": None}
    path.write_text(json.dumps(told))
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a", "b")
    with pytest.raises(ConfigError) as refused:
        verify(made.store, made.folder, made.config, run, "Ada")
    assert "retain accuracy lost: not measured (limit 0.010)" in str(refused.value)
    assert "unseen images: 0.250 (limit 0.050)" in str(refused.value)
    verify(made.store, made.folder, made.config, run, "Ada", "the board decided so")
    page = (path.parent / "evidence.html").read_text()
    assert "0.250 (limit 0.050)" in page
    rows = re.findall(r'<th scope="row">([^<]*accuracy[^<]*)</th>', page)
    assert len(set(rows)) == len(rows)
    assert "held-out accuracy, the site that lost most" in rows


def test_who_cannot_calibrate_is_told_what_helps() -> None:
    reference = object.__new__(Reference)
    reference._unseen = {8: {}}
    with pytest.raises(DataError, match=r"no site has enough reference images.*a smaller policy\.min_count at the sites"):
        reference.unseen(8)
