"""A site and its coordinator become of one mind about requests, whoever was away when something was decided."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from excise.client.config import read_site_config
from excise.client.coordinator import Coordinator, CoordinatorRefused, connected
from excise.client.deploy.watcher import take_in
from excise.client.requests import Requests
from excise.common.decision import Standing
from excise.common.request import ForgetRequest, RequestKind
from excise.common.signing import make_key
from excise.server.api import service
from excise.server.life import State
from excise.server.requests import draft, move, status, statuses
from tests.coordinators import DEVICE, OTHER, Network, listening, network


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path) as one:
        with listening(one):
            one.join("a")
        yield one


def heard(made: Network, requests: int) -> Requests:
    """What the site knows after the first so many things that the coordinator told."""
    toml = made.sites["a"]
    kept = Requests(toml.parent)
    with listening(made), connected(toml.parent, read_site_config(toml).coordinator) as coordinator:
        seen = coordinator.watch()
        for _ in range(requests):
            take_in(kept, coordinator, next(seen))
    return kept


def test_a_request_comes_in_and_a_decision_that_could_not_be_told_goes_out(made: Network, excise: Callable[..., Any]) -> None:
    draft(made.store, DEVICE, (), "Ada")
    kept = heard(made, 1)
    assert kept.get("mr7") == DEVICE
    assert (kept.noted(DEVICE)["state"], kept.noted(DEVICE)["waits_for"]) == ("drafted", ["a"])
    code, _, err = excise("site", "approve", "mr7", "--by", "Dr. Noether", "--site", made.sites["a"])
    assert (code, "does not answer now; excise site up tells it later" in err) == (0, True), err
    assert status(made.store, "mr7").sites == {"a": "pending"}
    heard(made, 2)  # as it was; and again, once the decision is told
    assert status(made.store, "mr7").state == "approved"


def test_a_decision_is_told_at_once_when_somebody_listens(made: Network, excise: Callable[..., Any]) -> None:
    draft(made.store, DEVICE, (), "Ada")
    heard(made, 1)
    with listening(made):
        code, _, err = excise("site", "approve", "mr7", "--by", "Dr. Noether", "--site", made.sites["a"])
    assert (code, "The coordinator knows; the request is approved" in err) == (0, True), err
    code, out, _ = excise("site", "requests", "show", "mr7", "--json", "--site", made.sites["a"])
    assert json.loads(out)["coordinator"]["state"] == "approved"


def test_a_site_drafts_a_request_of_its_own(made: Network, tmp_path: Path, excise: Callable[..., Any]) -> None:
    (tmp_path / "mr1.toml").write_text(OTHER.to_toml())
    with listening(made):
        code, _, err = excise("site", "submit", tmp_path / "mr1.toml", "--by", "Dr. Noether", "--site", made.sites["a"])
    assert (code, "'mr1' is drafted; it waits for a" in err) == (0, True), err
    assert status(made.store, "mr1").moves[0].by == "site a"
    assert Requests(made.sites["a"].parent).standing(OTHER) is Standing.PENDING


def test_what_could_not_be_sent_is_not_kept_as_submitted(made: Network, tmp_path: Path, excise: Callable[..., Any]) -> None:
    (tmp_path / "mr1.toml").write_text(OTHER.to_toml())
    command = ("site", "submit", tmp_path / "mr1.toml", "--by", "Dr. Noether", "--site", made.sites["a"])
    kept = Requests(made.sites["a"].parent)
    code, _, err = excise(*command)  # nobody listens
    assert (code, "does not answer" in err) == (2, True), err
    assert (kept.get("mr1"), kept.log.exists()) == (None, False)
    kept.arrive(OTHER.model_copy(update={"reason": "another"}))
    with listening(made):
        code, _, err = excise(*command)
    assert (code, "one id is carried out once" in err, statuses(made.store)) == (2, True, []), err


def test_who_approves_is_told_of_a_list_that_is_missing(made: Network, excise: Callable[..., Any]) -> None:
    site = made.sites["a"]
    asked = OTHER.model_copy(update={"kind": RequestKind.PATIENTS, "where": "PatientID in @withdrawn"})
    Requests(site.parent).arrive(asked)
    words = "this site has no list @withdrawn. Lists never travel with a request"
    assert words in asked.predicate.lacks([])
    code, _, err = excise("site", "approve", "mr1", "--by", "Dr. Noether", "--site", site)
    assert (code, "'mr1' is approved" in err, words in err) == (0, True, True), err
    (site.parent / "lists").mkdir()
    (site.parent / "lists" / "withdrawn.txt").write_text("1\n")
    code, _, err = excise("site", "approve", "mr1", "--by", "Dr. Noether", "--site", site)
    assert (code, "Warning" in err) == (0, False), err


def test_a_request_that_names_patients_is_sent_only_when_it_is_said(
    made: Network, tmp_path: Path, excise: Callable[..., Any]
) -> None:
    site = made.sites["a"]
    values = {"kind": RequestKind.PATIENTS, "where": "PatientID in (CANARY-1, CANARY-2)"}
    named = ForgetRequest.model_validate(OTHER.model_dump() | values)
    (tmp_path / "mr1.toml").write_text(named.to_toml())
    command = ("site", "submit", tmp_path / "mr1.toml", "--by", "Dr. Noether", "--site", site)
    with listening(made):
        code, _, err = excise(*command)
        assert (code, "PatientID in @NAME" in err, "CANARY" in err) == (2, True, False), err
        assert Requests(site.parent).get("mr1") is None
        assert statuses(made.store) == []
        code, _, err = excise(*command, "--names-patients")
    assert (code, status(made.store, "mr1").request) == (0, named), err
    submitted = json.loads(Requests(site.parent).log.read_text().splitlines()[-1])
    assert (submitted["event"], submitted["names"]) == ("request submitted", ["PatientID"])


def test_another_request_of_a_known_id_is_left_out_and_the_others_go_on(made: Network) -> None:
    draft(made.store, DEVICE, (), "Ada")
    draft(made.store, OTHER, (), "Ada")
    Requests(made.sites["a"].parent).arrive(DEVICE.model_copy(update={"reason": "another"}))
    kept = heard(made, 2)
    assert kept.get("mr1") == OTHER
    assert kept.get("mr7") != DEVICE
    assert kept.noted(DEVICE) == {}


def test_a_decision_that_is_refused_does_not_keep_other_requests_away(
    made: Network, excise: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    for request in (OTHER, DEVICE):  # told in the order of their names: mr1, mr7
        draft(made.store, request, (), "Ada")
    key = made.sites["a"].parent / "keys" / "signing.pem"
    key.unlink()
    make_key(key)  # the coordinator knows the former
    (made.folder.parent / "mr1.toml").write_text(OTHER.to_toml())
    said = excise("site", "approve", made.folder.parent / "mr1.toml", "--by", "N", "--site", made.sites["a"])
    assert said[0] == 0, said
    kept = heard(made, 2)
    assert kept.get("mr7") == DEVICE
    assert kept.noted(DEVICE)["state"] == "drafted"
    (refused,) = [one for one in caplog.records if one.message == "decision refused by the coordinator"]
    assert refused.__dict__["details"] == {"request": "mr1", "standing": "approved", "code": "invalid_argument"}
    assert "signed" not in caplog.text


def test_a_decision_is_told_only_while_it_is_taken(
    made: Network, excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft(made.store, DEVICE, (), "Ada")
    heard(made, 1)
    assert excise("site", "approve", "mr7", "--by", "N", "--site", made.sites["a"])[0] == 0
    move(made.store, ["mr7"], State.REJECTED, "Ada", "a mistake")
    monkeypatch.setattr(Coordinator, "decide", lambda *_: pytest.fail("told too late"))
    assert heard(made, 1).noted(DEVICE)["state"] == "rejected"


def test_a_request_of_a_later_release_is_left_out_and_the_others_go_on(
    made: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for request in (OTHER, DEVICE):
        draft(made.store, request, (), "Ada")
    whole = service._told

    def later(request: Any, site: str) -> Any:
        told = whole(request, site)
        if told.id == "mr1":
            told.document = told.document.replace("{", '{"later":1,', 1)
        return told

    monkeypatch.setattr(service, "_told", later)
    kept = heard(made, 2)
    assert [one.id for one in kept] == ["mr7"]
    assert "a request of the coordinator cannot be kept" in caplog.text


def test_a_decision_that_comes_too_soon_is_told_later(
    made: Network, excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise CoordinatorRefused("too many calls", "resource_exhausted")

    draft(made.store, DEVICE, (), "Ada")
    heard(made, 1)
    assert excise("site", "approve", "mr7", "--by", "N", "--site", made.sites["a"])[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(Coordinator, "decide", busy)
        with pytest.raises(CoordinatorRefused):
            heard(made, 1)
    heard(made, 1)
    assert status(made.store, "mr7").state == "approved"
