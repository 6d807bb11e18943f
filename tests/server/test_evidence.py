"""Evidence, promotion and rollback: what a third party finds of a file, and which model is in use when."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.common import evidence as checking
from excise.common.canonical import canonical, digest_of
from excise.common.decision import Standing
from excise.common.errors import ConfigError, DataError, RequestError
from excise.common.signing import read_key, sign
from excise.common.weights import digest, load_weights, save_weights
from excise.server import members
from excise.server.evidence import seal, verify
from excise.server.evidence_pack import pack_of, sign_as_site, unsigned, write_pack
from excise.server.export import export
from excise.server.life import IllegalMove, State
from excise.server.record import REVISED
from excise.server.registry import InUse, bring_in, promote, roll_back, run_of, version, versions
from excise.server.requests import status
from tests.candidates import changed, ran, signed
from tests.coordinators import DEVICE, OTHER, SPEC, Network, ready


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with ready(tmp_path) as one:
        yield one


def verified(made: Network, run: str) -> None:
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a", "b")
    verify(made.store, made.folder, made.config, run, "Ada")


def promoted(made: Network, run: str) -> int:
    return promote(made.store, made.folder, run, made.config.runs / run / REVISED, "Ada", "it forgot").version


def faults(pack: dict[str, Any], **keys: str) -> list[str]:
    return [one.told for one in checking.check(pack, keys) if one.good is False]


def test_a_request_goes_from_run_to_use_and_back(made: Network, tmp_path: Path, excise: Callable[..., Any]) -> None:
    run = ran(made, DEVICE)
    with pytest.raises(ConfigError, match="no evidence yet"):
        verify(made.store, made.folder, made.config, run, "Ada")
    seal(made.store, made.folder, made.config, run)
    assert status(made.store, "mr7").state is State.CANDIDATE
    with pytest.raises(ConfigError, match="no signature of a, b"):
        verify(made.store, made.folder, made.config, run, "Ada")
    with pytest.raises(IllegalMove):
        promoted(made, run)
    signed(made, run, "a")
    assert unsigned(made.store, run) == ("b",)
    signed(made, run, "b", "b")  # twice is once
    verify(made.store, made.folder, made.config, run, "Ada")
    assert promoted(made, run) == promoted(made, run) == 2
    use = version(made.store)
    assert (use.version, use.parent, use.requests, use.spec) == (2, 1, ("mr7",), SPEC)
    assert status(made.store, "mr7").state is State.PROMOTED
    write_pack(made.store, made.config, run)

    file = made.config.runs / run / "evidence.json"
    known = {name: made.keys(name)[0].signing for name in "ab"}
    keys = [part for name, key in known.items() for part in ("--key", f"{name}={key}")]
    code, out, err = excise("evidence", "verify", file, *keys)
    assert (code, "✗" in out) == (0, False), err
    assert "promoted as model 2, by Ada" in out
    page = file.with_name("evidence.html").read_text()
    for told in (
        "0.410 to –",
        "0.012",
        "did not ask for a linear probe",
        "1. Description of the modification",
        "2. Modification protocol",
        "3. Impact assessment",
        "does not prove",
    ):
        assert told in page
    assert "<script" not in page

    assert roll_back(made.store, made.folder, 2, "Ada", "worse than thought") == InUse(1)
    assert roll_back(made.store, made.folder, 2, "Ada", "once more") == InUse(1, again=True)  # twice is once
    with pytest.raises(IllegalMove, match="'mr7' is rolled back and cannot become promoted"):
        promoted(made, run)
    assert version(made.store).version == 1
    assert status(made.store, "mr7").state is State.ROLLED_BACK
    assert [(one.version, one.state, one.current) for one in versions(made.store)] == [
        (2, "rolled back", False),
        (1, "promoted", True),
    ]
    with pytest.raises(ConfigError, match="made of none"):
        roll_back(made.store, made.folder, 1, "Ada", "once more")
    with pytest.raises(ConfigError, match="model 7 is not in use; model 1 is"):
        roll_back(made.store, made.folder, 7, "Ada", "")
    assert faults(pack_of(made.store, run)) == []
    assert made.store.log_faults() == []


def test_the_next_run_begins_with_the_promoted_model_and_contains_what_it_forgot(made: Network, tmp_path: Path) -> None:
    verified(made, first := ran(made, DEVICE))
    promoted(made, first)
    run = ran(made, OTHER, by=0.2)
    assert run_of(made.store, run).base == 2
    assert digest(load_weights(made.config.runs / run / "deployed.safetensors")) == version(made.store, 2).digest
    verified(made, run)
    promoted(made, run)
    assert version(made.store).requests == ("mr7", "mr1")
    with pytest.raises(ConfigError, match="was promoted as model 2, which is in use no more"):
        promoted(made, first)
    chosen = export(made.store, made.folder, None, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert chosen.version == 3
    assert all(told in card for told in ("# Model 3", "**mr7** (device): retired", "**mr1**", chosen.digest, "| 0.500 |"))
    assert digest(load_weights(tmp_path / "out" / "model.safetensors")) == chosen.digest
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["manifest"]["requests"] == ["mr7", "mr1"]


def test_a_model_that_would_undo_another_is_not_promoted(made: Network) -> None:
    verified(made, first := ran(made, DEVICE))
    verified(made, second := ran(made, OTHER, by=0.2))
    promoted(made, first)
    with pytest.raises(ConfigError, match="began with model 1, but model 2 is in use"):
        promoted(made, second)
    assert status(made.store, "mr1").state is State.VERIFIED


def test_a_missed_rule_or_a_silent_site_is_overridden_in_writing_alone(made: Network) -> None:
    run = ran(made, DEVICE, met=False)
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a")
    with pytest.raises(
        ConfigError, match=r"membership AUC from that of unseen images: 0.400 \(limit 0.050\); no signature of b"
    ):
        verify(made.store, made.folder, made.config, run, "Ada")
    verify(made.store, made.folder, made.config, run, "Ada", "the board decided so")
    pack = pack_of(made.store, run)
    assert "overridden: the board decided so" in pack["statements"][0]["text"]
    assert faults(pack) == ["b: no signature"]


def test_another_model_than_that_of_the_evidence_is_not_promoted(made: Network) -> None:
    verified(made, run := ran(made, DEVICE))
    path = made.config.runs / run / REVISED
    save_weights(changed(load_weights(path), 1.0), path)
    with pytest.raises(ConfigError, match="is not the model that the evidence of 'mr7' is of"):
        promoted(made, run)
    assert version(made.store).version == 1


def test_who_took_no_part_or_signs_something_else_is_refused(made: Network) -> None:
    run = ran(made, DEVICE)
    seal(made.store, made.folder, made.config, run)
    made.let_in("c")
    text = canonical(pack_of(made.store, run)["document"])
    own = {name: read_key(made.sites[name].parent / "keys" / "signing.pem") for name in "abc"}
    good = digest_of(text)
    for site, evidence, signature, reason in (
        ("c", good, sign(own["c"], text.encode()), "no evidence of 'mr7' concerns 'c'"),
        ("a", "00" * 32, sign(own["a"], text.encode()), "has the digest"),
        ("a", good, sign(own["b"], text.encode()), "is not signed with the key of 'a'"),
        ("a", good, "", "is not signed"),
    ):
        with pytest.raises(RequestError, match=reason):
            sign_as_site(made.store, made.config, site, run, evidence, signature)
    assert unsigned(made.store, run) == ("a", "b")


def test_evidence_is_made_once(made: Network) -> None:
    run = ran(made, DEVICE)
    first = seal(made.store, made.folder, made.config, run)
    assert seal(made.store, made.folder, made.config, run) == first
    with pytest.raises(RequestError, match="no run 'none'"):
        seal(made.store, made.folder, made.config, "none")


Change = Callable[[dict[str, Any]], object]
FORGERIES: dict[str, Change] = {
    "a number": lambda pack: pack["document"]["impact_assessment"]["unlearned"]["pooled"].update(membership_auc=0.51),
    "the reason": lambda pack: pack["document"]["description_of_modification"]["requests"][0]["request"].update(reason="x"),
    "the verdict": lambda pack: pack["document"]["impact_assessment"].update(accepted=False),
    "an approval left out": lambda pack: pack["document"]["modification_protocol"]["approvals"].clear(),
    "a site left out": lambda pack: pack["document"]["sites"].pop("b"),
    "what it does not prove": lambda pack: pack["document"]["does_not_prove"].clear(),
    "one approval left out": lambda pack: pack["document"]["modification_protocol"]["approvals"].pop(),
    "a signature left out": lambda pack: pack["signatures"].pop(),
    "the coordinator's left out": lambda pack: pack["signatures"].pop(0),
    "signatures changed round": lambda pack: pack["signatures"][1].update(signature=pack["signatures"][2]["signature"]),
    "another key": lambda pack: pack["signatures"][1].update(key="00" * 32),
    "a stranger's": lambda pack: pack["signatures"].append(pack["signatures"][1] | {"signer": "stranger"}),
    "a statement": lambda pack: pack["statements"][0].update(text=pack["statements"][0]["text"].replace("Ada", "Eve")),
    "a field gone": lambda pack: pack["document"].pop("modification_protocol"),
    "a list for an object": lambda pack: pack["document"].update(sites=[]),
}


def test_whatever_is_forged_is_found(made: Network) -> None:
    verified(made, run := ran(made, DEVICE))
    pack = pack_of(made.store, run)
    assert faults(pack) == []
    for what, forge in FORGERIES.items():
        forged = copy.deepcopy(pack)
        forge(forged)
        assert faults(forged), what


def test_evidence_that_was_made_anew_with_other_keys_is_found_by_who_knows_the_right_ones(made: Network) -> None:
    verified(made, run := ran(made, DEVICE))
    pack = pack_of(made.store, run)
    known = {"coordinator": pack["document"]["coordinator"]["key"], "a": pack["document"]["sites"]["a"]["key"]}
    assert faults(pack, **known) == []
    assert faults(pack, **known | {"a": "00" * 32}) == ["a: the key is another than the one that you know"]
    assert faults(pack, c="00" * 32) == ["c: the key is another than the one that you know"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "no evidence at"), ("[]", "is no evidence"), ('{"document": 1}', "is no evidence"), ('{"document": {}}', "format")],
)
def test_what_is_no_evidence_says_so(tmp_path: Path, excise: Callable[..., Any], text: str, reason: str) -> None:
    (tmp_path / "e.json").write_text(text)
    code, _, err = excise("evidence", "verify", tmp_path / "e.json")
    assert (code, reason in err) == (2, True), err
    with pytest.raises(DataError):
        checking.read_evidence(tmp_path / "none.json")


def test_a_pickle_of_more_than_tensors_is_no_model(made: Network, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "it ran",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match="holds more than tensors"):
        bring_in(made.store, made.folder, tmp_path / "evil.pt", SPEC, "Ada")
    (tmp_path / "evil.safetensors").write_bytes((tmp_path / "evil.pt").read_bytes())
    with pytest.raises(DataError, match="no readable model"):
        bring_in(made.store, made.folder, tmp_path / "evil.safetensors", SPEC, "Ada")
    with pytest.raises(ConfigError, match="is not of the model"):
        bring_in(
            made.store,
            made.folder,
            made.folder.parent / "deployed.safetensors",
            SPEC.model_copy(update={"classes": 3}),
            "Ada",
        )
    assert not (tmp_path / "it ran").exists()
    assert [one.version for one in versions(made.store)] == [1]


def test_the_same_model_is_brought_in_once_and_another_takes_its_place(made: Network, tmp_path: Path) -> None:
    first = tmp_path / "deployed.safetensors"
    assert bring_in(made.store, made.folder, first, SPEC, "Ada") == 1
    save_weights(changed(load_weights(first), 1.0), tmp_path / "other.safetensors")
    assert bring_in(made.store, made.folder, tmp_path / "other.safetensors", SPEC, "Ada") == 2
    assert [(one.version, one.current, one.parent) for one in versions(made.store)] == [(2, True, None), (1, False, None)]


def test_a_joined_run_is_verified_when_each_request_meets_its_own_rule(made: Network) -> None:
    parts = {"mr7": {"accepted": True}, "mr1": {"accepted": False}}
    run = ran(made, DEVICE, OTHER, requests=parts)
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a", "b")
    with pytest.raises(ConfigError, match="cannot be verified: the rule of 'mr1' is not met"):
        verify(made.store, made.folder, made.config, run, "Ada")


def test_a_site_that_denies_while_it_runs_stands_against_it(made: Network) -> None:
    run = ran(made, DEVICE)
    made.decide("b", DEVICE, Standing.DENIED, "2026-01-02")
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a", "b")
    with pytest.raises(ConfigError, match="cannot be verified: b: 'mr7' is denied there by now"):
        verify(made.store, made.folder, made.config, run, "Ada")
    pack = pack_of(made.store, run)
    assert faults(pack) == []  # what it approved before the run is in the evidence, and what it decided since
    assert any("b decided otherwise after the run had begun" in one.told for one in checking.check(pack))


def test_a_site_that_was_asked_and_took_no_part_is_told(made: Network) -> None:
    run = ran(made, DEVICE, sites="a")
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a")
    with pytest.raises(ConfigError, match="asked, but took no part: b"):
        verify(made.store, made.folder, made.config, run, "Ada")
    told = [one.told for one in checking.check(pack_of(made.store, run)) if one.good is None]
    assert any(one.startswith("b: was asked and took no part") for one in told)


def test_what_a_revoked_site_approved_waits_for_it_anew(made: Network) -> None:
    made.approved(DEVICE)
    members.revoke(made.store, "b", "Ada")
    told = status(made.store, "mr7")
    assert (told.state, told.waits_for, told.sites["b"]) == (State.DRAFTED, ("b (revoked)",), "pending")
    assert made.store.log_faults() == []


def test_keys_that_the_reader_does_not_know_are_told_as_such(made: Network) -> None:
    verified(made, run := ran(made, DEVICE))
    known = {"coordinator": pack_of(made.store, run)["document"]["coordinator"]["key"]}
    open_ = [one.told for one in checking.check(pack_of(made.store, run), known) if one.good is None]
    assert [one.split(":")[0] for one in open_] == ["a", "b"]


def test_a_statement_that_was_taken_out_is_missed(made: Network) -> None:
    verified(made, run := ran(made, DEVICE))
    promoted(made, run)
    pack = pack_of(made.store, run)
    assert faults(pack) == []
    del pack["statements"][0]
    assert faults(pack)


def test_the_model_that_the_run_began_with_is_the_one_in_the_evidence(made: Network) -> None:
    run = ran(made, DEVICE)
    path = made.config.runs / run / "deployed.safetensors"
    save_weights(changed(load_weights(path), 1.0), path)
    with pytest.raises(ConfigError, match="is not model 1, with which the run began"):
        seal(made.store, made.folder, made.config, run)
