"""Requests at a site: nothing is done for one before its people said so, and nobody else can say it for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message

from excise.client import app
from excise.client import requests as module
from excise.client.permission import Forbidden, count_round
from excise.client.policy import LimitSettings
from excise.client.requests import Requests
from excise.common.chain import faults
from excise.common.decision import Standing
from excise.common.errors import ConfigError, RequestError
from excise.common.messages import SiteStatus, StatusQuery
from excise.common.request import ForgetRequest, RequestKind, joined
from excise.common.signing import make_key, public_hex, read_key, sign
from excise.simulations.local_grid import LocalGrid
from tests.dicoms import write_hospital, write_site_toml

DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")
SECOND = ForgetRequest(id="mr1", kind=RequestKind.DEVICE, where="StationName = MR1", reason="retired too")


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    made = Requests(tmp_path)
    make_key(made.key)
    return made


def test_a_request_waits_until_it_is_decided(requests: Requests) -> None:
    assert requests.arrive(DEVICE)
    assert not requests.arrive(DEVICE)
    assert requests.standing(DEVICE) is Standing.PENDING
    requests.decide(DEVICE, Standing.APPROVED, "Dr. Noether", "fine")
    assert requests.standing(DEVICE) is Standing.APPROVED
    requests.decide(DEVICE, Standing.DENIED, "Dr. Noether", "on second thoughts")
    assert requests.standing(DEVICE) is Standing.DENIED
    assert list(requests) == [DEVICE]
    events = [json.loads(line) for line in requests.log.read_text().splitlines()]
    assert [(event["event"], event.get("by")) for event in events] == [
        ("request arrived", None),
        ("request approved", "Dr. Noether"),
        ("request denied", "Dr. Noether"),
    ]
    assert faults(requests.log) == []


def test_rounds_are_counted_for_each_exact_request(requests: Requests) -> None:
    limits = LimitSettings(rounds=3)
    for _ in range(3):
        count_round(DEVICE, requests, limits)
    with pytest.raises(Forbidden, match=r"'mr7' had limits\.rounds = 3 rounds here already") as refused:
        count_round(DEVICE, Requests(requests.folder.parent), limits)
    assert refused.value.code == "forbidden"
    count_round(DEVICE.model_copy(update={"reason": "another"}), requests, limits)
    count_round(SECOND, requests, limits)
    count_round(DEVICE, requests, LimitSettings(rounds=5))


def test_a_round_of_joined_requests_is_one_of_each(requests: Requests) -> None:
    parts = (DEVICE, SECOND)
    requests.arrive(joined(parts), parts)
    limits = LimitSettings(rounds=3)
    count_round(joined(parts), requests, limits)
    count_round(DEVICE, requests, limits)
    turned = (SECOND, DEVICE)
    requests.arrive(joined(turned), turned)
    count_round(joined(turned), requests, limits)
    for one in (joined(parts), joined(turned), DEVICE):
        with pytest.raises(Forbidden):
            count_round(one, requests, limits)
    assert requests.count_round(SECOND) <= limits.rounds + 3


def test_a_request_is_not_joined_of_itself(requests: Requests) -> None:
    for parts in ((DEVICE,), (DEVICE, DEVICE)):
        with pytest.raises(RequestError):
            requests.arrive(DEVICE, parts)
    path = requests.folder / "mr7" / "parts.json"
    requests.arrive(DEVICE)
    path.write_text(json.dumps({"digest": DEVICE.digest, "parts": [DEVICE.digest]}))  # whoever wrote it
    assert requests.standing(DEVICE) is Standing.PENDING


def test_rounds_that_are_answered_at_once_are_all_counted(requests: Requests) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda _: Requests(requests.folder.parent).count_round(DEVICE), range(24))) == list(
            range(1, 25)
        )


def test_another_request_of_the_same_id_is_refused(requests: Requests) -> None:
    requests.arrive(DEVICE)
    wider = DEVICE.model_copy(update={"where": 'StationName matches "*"'})
    with pytest.raises(RequestError, match="another request of the id 'mr7'"):
        requests.arrive(wider)
    requests.decide(DEVICE, Standing.APPROVED, "N", "")
    assert requests.standing(wider) is Standing.PENDING  # a decision is of one exact request


@pytest.mark.parametrize(
    "forge",
    [
        lambda signed: signed | {"standing": "approved"},
        lambda signed: signed | {"by": "somebody else"},
        lambda signed: signed | {"signature": "00" * 64},
        lambda signed: {"standing": "approved"},
        lambda signed: [],
    ],
    ids=["standing", "name", "signature", "fields", "nothing"],
)
def test_a_decision_that_the_site_did_not_sign_is_none(requests: Requests, forge: Callable[[Any], Any]) -> None:
    requests.arrive(DEVICE)
    requests.decide(DEVICE, Standing.DENIED, "N", "")
    path = requests.folder / "mr7" / "decision.json"
    path.write_text(json.dumps(forge(json.loads(path.read_text()))))
    assert requests.standing(DEVICE) is Standing.PENDING


def test_a_decision_signed_with_another_key_is_none(requests: Requests, tmp_path: Path) -> None:
    requests.arrive(DEVICE)
    decision = requests.decide(DEVICE, Standing.APPROVED, "N", "")
    foreign = make_key(tmp_path / "foreign.pem")
    path = requests.folder / "mr7" / "decision.json"
    signed = json.loads(path.read_text()) | {"signature": sign(foreign, decision.text()), "key": public_hex(foreign)}
    path.write_text(json.dumps(signed))
    assert requests.standing(DEVICE) is Standing.PENDING


def test_a_joined_request_stands_as_its_parts_do(requests: Requests) -> None:
    both = joined([DEVICE, SECOND])
    assert requests.arrive(both, (DEVICE, SECOND))
    assert {request.id for request in requests} == {"mr7", "mr1", both.id}
    requests.decide(DEVICE, Standing.APPROVED, "N", "")
    assert requests.standing(both) is Standing.PENDING
    requests.decide(SECOND, Standing.APPROVED, "N", "")
    assert requests.standing(both) is Standing.APPROVED
    requests.decide(SECOND, Standing.DENIED, "N", "")
    assert requests.standing(both) is Standing.DENIED
    requests.decide(both, Standing.APPROVED, "N", "")
    assert requests.standing(both) is Standing.DENIED  # one of its parts is
    with pytest.raises(RequestError, match="not what its 1 parts make"):
        requests.arrive(both, (DEVICE,))


def test_nobody_decides_without_the_sites_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make it with excise site init"):
        Requests(tmp_path).decide(DEVICE, Standing.APPROVED, "N", "")


# ---- through the app ----------------------------------------------------------------------------------------------------


def ask(site_toml: Path, query: StatusQuery) -> ConfigRecord:
    grid = LocalGrid(app.make_app(lambda _: site_toml), 1)
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(query.to_record(), node, query.KIND)])
    record = reply.content["message"]
    assert isinstance(record, ConfigRecord)
    return record


def test_the_app_does_nothing_before_approval(tmp_path: Path, excise: Callable[..., Any]) -> None:
    write_hospital(tmp_path)
    site = write_site_toml(tmp_path, data={"labels": "labels.csv"}, policy={"approval": True})
    make_key(tmp_path / "keys" / "signing.pem")
    query = StatusQuery(request=DEVICE)
    assert ask(site, query)["code"] == "not_approved"
    code, out, _ = excise("site", "requests", "list", "--site", site, "--json")
    assert (code, [(one["id"], one["standing"]) for one in json.loads(out)]) == (0, [("mr7", "pending")])
    code, out, _ = excise("site", "requests", "show", "mr7", "--site", site)
    assert code == 0
    assert 'where = "StationName = MR7"' in out
    assert DEVICE.digest in out
    code, _, err = excise("site", "approve", "mr7", "--site", site, "--by", "Dr. [Noether]", "--note", "fine")
    assert code == 0, err
    assert ask(site, query)["kind"] == SiteStatus.KIND
    code, _, err = excise("site", "deny", "mr7", "--site", site, "--by", "Dr. [Noether]", "--note", "no")
    assert code == 0, err
    assert ask(site, query)["code"] == "denied"
    code, _, err = excise("site", "audit", "verify", "--site", site)
    assert code == 0, err
    assert "every line is as it was written" in err
    log = tmp_path / "audit.jsonl"
    log.write_text(log.read_text().replace('"mr7"', '"mr8"', 1))
    code, _, err = excise("site", "audit", "verify", "--site", site)
    assert code == 2
    assert "line 1: the line was altered" in err


def test_mistakes_on_the_command_line_are_told(tmp_path: Path, excise: Callable[..., Any]) -> None:
    write_hospital(tmp_path)
    site = write_site_toml(tmp_path, data={"labels": "labels.csv"}, policy={"kinds": ["patients"]})
    make_key(tmp_path / "keys" / "signing.pem")
    code, _, err = excise("site", "approve", "mr7", "--site", site, "--by", "N")
    assert (code, "no request 'mr7' came; none did yet" in err) == (2, True)
    (tmp_path / "mr7.toml").write_text(DEVICE.to_toml())
    code, _, err = excise("site", "approve", tmp_path / "mr7.toml", "--site", site, "--by", "N")
    assert code == 2
    assert "does not allow requests of kind 'device'" in err
    code, out, _ = excise("site", "requests", "list", "--site", site)
    assert "mr7" in out  # it came, though it was not approved
    code, _, err = excise("site", "requests", "show", "mr8", "--site", site)
    assert "did you mean 'mr7'?" in err
    assert read_key(tmp_path / "keys" / "signing.pem")


def test_a_decision_is_later_than_the_one_before_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / "keys" / "signing.pem")
    kept = Requests(tmp_path)
    kept.arrive(DEVICE)

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(module, "datetime", Stopped)
    told = [
        kept.decide(DEVICE, standing, "Ada", "").at for standing in (Standing.APPROVED, Standing.DENIED, Standing.APPROVED)
    ]
    assert told == sorted(set(told))
    assert kept.standing(DEVICE) is Standing.APPROVED


@pytest.mark.parametrize(("command", "options"), [("approve", ["--by", "--note"]), ("deny", ["--by", "--note"])])
def test_who_decides_is_told_that_all_sites_read_it(command: str, options: list[str], excise: Callable[..., Any]) -> None:
    code, out, _ = excise("site", command, "--help")
    told = " ".join(out.replace("│", " ").split())
    assert (code, told.count("stands in the evidence that every participating site sees")) == (0, len(options))
