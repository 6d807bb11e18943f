"""The dashboard without a browser: who may see and act, what every answer carries, what is refused, and each action."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from cryptography import x509

from excise.common.decision import Standing
from excise.common.predicate_parser import parse
from excise.common.request import ForgetRequest, RequestKind
from excise.server import decisions, members, waiting
from excise.server.carrying import carrying_out
from excise.server.dashboard import watch
from excise.server.dashboard.access import Access, by_token
from excise.server.dashboard.app import STREAMS, create_app
from excise.server.dashboard.printing import QUEUE, Printer
from excise.server.dashboard.runner import Runner
from excise.server.dashboard.sessions import Session
from excise.server.dashboard.source import runs_in
from excise.server.decisions import reject
from excise.server.events import add as add_event
from excise.server.evidence import seal, verify
from excise.server.launch import prepare
from excise.server.life import State
from excise.server.record import DEPLOYED, REVISED
from excise.server.registry import run_of, version
from excise.server.requests import draft, status, statuses
from excise.server.setup import sites_authority
from excise.server.store.leases import held, lease_of
from tests.candidates import MET, ran, signed
from tests.coordinators import DEVICE, OTHER, Network, network, ready
from tests.dashboards import COORDINATOR, OTHER_COORDINATOR, PASSWORD, VIEWER, app_of, serving, signed_in, with_users
from tests.deployment import eventually

CHARTS = "chart:curve,chart:pareto,chart:heat,chart:embedding"
PAGES = ("/", "/requests", "/sites", "/compare", "/embeddings", "/audit", "/reports")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with ready(tmp_path) as one:
        yield with_users(one)


@pytest.fixture
def url(made: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A dashboard that keeps nothing: what a test wrote a moment ago is shown, however busy the machine is."""
    never_twice = itertools.count()
    monkeypatch.setattr(watch.Watch, "at", lambda its, topics: (next(never_twice),))
    with serving(app_of(made)) as address:
        yield address


def candidate(made: Network, met: bool = True, asked: ForgetRequest = DEVICE) -> str:
    run = ran(made, asked, met=met)
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a", "b")
    return run


def joined_candidate(made: Network) -> str:
    parts = {name: {"unlearned": MET, "accepted": True} for name in ("mr7", "mr1")}
    run = ran(made, DEVICE, OTHER, requests=parts)
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a", "b")
    return run


def last_of_log(made: Network) -> dict[str, object]:
    told: dict[str, object] = json.loads((made.folder / "audit.jsonl").read_text().splitlines()[-1])
    return told


def revised(made: Network) -> str:
    told = json.loads(run_of(made.store, "mr7").document)["description_of_modification"]["model_after"]
    return str(told["digest"])


def offered(client: httpx.Client, request: str) -> list[str]:
    """What a coordinator can do with a request, by the words on its buttons."""
    return re.findall(r"data-opens=\"\w+\">(.*?)<", client.get(f"/requests/{request}").text)


def approve(made: Network, client: httpx.Client, **more: str) -> httpx.Response:
    after = revised(made)
    told = {"request": "mr7", "state": "candidate", "digest": after, "why": "it forgot", "password": PASSWORD}
    return client.post("/do/approve", data=told | more)


# --- who may see ------------------------------------------------------------------------------------------------------------


def test_nobody_sees_anything_before_signing_in(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        for path in (*PAGES, "/requests/mr7", "/parts?names=sites", "/runs/mr7/report.html", "/me"):
            assert client.get(path).status_code == 401, path
            page = client.get(path, headers={"Accept": "text/html"})
            assert (page.status_code, page.headers["location"]) == (303, "/login"), path
        events = client.get("/events")
        assert events.status_code == 401  # an answer that ends the stream, not a redirect to a page
        for path in ("/do/draft", "/do/approve", "/do/invite", "/check/request", "/logout"):
            assert client.post(path).status_code == 401, path


def test_there_are_no_other_pages(url: str) -> None:
    with signed_in(url) as client:
        for path in (
            "/docs",
            "/redoc",
            "/openapi.json",
            "/static/../app.py",
            "/runs/../server.toml/report.html",
            "/parts?names=x",
        ):
            assert client.get(path).status_code == 404, path
        for path in ("/runs/%2e%2e/server.toml", "/runs/mr7/..%2f..%2fserver.toml", "/runs/./metrics.json"):
            assert client.get(path).status_code == 404, path


def test_every_answer_says_what_a_browser_may_do(url: str) -> None:
    with signed_in(url) as client:
        for path in (*PAGES, "/login", "/static/app.js", "/nowhere"):
            headers = client.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy, path
            assert "unsafe" not in policy, path
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == ("no-cache" if "static" in path else "no-store")
        assert "server" not in client.get("/").headers


def test_the_cookie_is_out_of_reach_of_scripts_and_other_pages(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        cookie = client.post("/login", data={"name": COORDINATOR, "password": PASSWORD}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


def test_a_wrong_password_is_refused_and_too_many_lock(made: Network, url: str) -> None:
    with httpx.Client(base_url=url) as client:
        for _ in range(5):
            answer = client.post("/login", data={"name": VIEWER, "password": "wrong wrong wrong"})
            assert answer.status_code == 401
            assert "the name or the password is wrong" in answer.text
        locked = client.post("/login", data={"name": VIEWER, "password": PASSWORD})
        assert (locked.status_code, "try again in 15 min" in locked.text) == (429, True)
    log = (made.folder / "audit.jsonl").read_text()
    assert log.count('"sign-in failed"') == 5
    assert '"locked out"' in log
    assert "wrong wrong" not in log
    assert made.store.log_faults() == []


def test_viewers_see_and_do_not_act(made: Network, url: str) -> None:
    run = candidate(made)
    with signed_in(url, VIEWER) as client:
        for path in (*PAGES, "/requests/mr7", f"/runs/{run}/evidence.html"):
            page = client.get(path)
            assert page.status_code == 200, path
            assert "/do/" not in page.text, path
        assert approve(made, client).status_code == 403
        assert client.post("/do/invite", data={"site": "c"}).status_code == 403
    assert status(made.store, "mr7").state is State.CANDIDATE


def test_a_change_without_the_sessions_key_is_refused(made: Network, url: str) -> None:
    candidate(made)
    with signed_in(url) as client, signed_in(url, OTHER_COORDINATOR) as other:
        for key in ("", "0" * 64, other.headers["X-CSRF"]):
            client.headers["X-CSRF"] = key
            assert approve(made, client).status_code == 403
            assert client.post("/logout").status_code == 403
    assert status(made.store, "mr7").state is State.CANDIDATE


def test_who_signed_out_is_out(url: str) -> None:
    with signed_in(url) as client:
        kept = client.cookies["excise"]
        assert client.post("/logout").headers["hx-redirect"] == "/login"
        client.cookies.set("excise", kept)
        assert client.get("/").status_code == 401


def test_large_bodies_are_not_read(url: str) -> None:
    with signed_in(url) as client:
        assert client.post("/do/draft", content=b"x" * (2 << 20)).status_code == 413
        assert client.post("/do/draft", content=iter([b"x"])).status_code == 413  # of a length that is not told


def test_a_mistake_of_ours_tells_nothing_of_itself(
    made: Network, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> object:
        raise RuntimeError("Doe^Jane")

    monkeypatch.setattr("excise.server.dashboard.pages.status", fails)
    draft(made.store, DEVICE, (), "tests")
    with signed_in(url) as client:
        answer = client.get("/requests/mr7")
    assert answer.status_code == 500
    assert "Doe" not in answer.text + caplog.text
    assert "RuntimeError" in caplog.text


# --- actions ----------------------------------------------------------------------------------------------------------------


def test_a_request_is_checked_as_it_is_typed_and_drafted(made: Network, url: str) -> None:
    fields = {"id": "mr7", "kind": "device", "where": "StationName = MR7", "reason": "retired", "sites": ["a"]}
    with signed_in(url) as client:
        wrong = client.post("/check/request", data=fields | {"where": "StationName = = MR7"})
        assert (wrong.status_code, "✗" in wrong.text) == (200, True)
        assert "✓" in client.post("/check/request", data=fields).text
        assert client.post("/do/draft", data=fields | {"id": "Mr 7"}).status_code == 409
        assert client.post("/do/draft", data=fields | {"sites": ["nobody"]}).status_code == 409
        assert "waits for a" in client.post("/do/draft", data=fields).text
    one = status(made.store, "mr7")
    assert (one.state, one.sites, one.request.requested_by) == (State.DRAFTED, {"a": "pending"}, COORDINATOR)
    assert last_of_log(made) | {"event": "request drafted", "by": COORDINATOR} == last_of_log(made)


def test_a_rule_that_names_patients_is_drafted_only_with_a_tick_and_shown_without_them(made: Network, url: str) -> None:
    fields = {"id": "p1", "kind": "patients", "where": "PatientID in (CANARY-1, CANARY-2)", "reason": "asked by letter"}
    with signed_in(url) as client, signed_in(url, VIEWER) as viewer:
        warned = client.post("/check/request", data=fields)
        assert (warned.status_code, "✗" in warned.text, "PatientID in @NAME" in warned.text) == (200, True, True)
        refused = client.post("/do/draft", data=fields)
        assert (refused.status_code, "tick that the rule names patients" in refused.text) == (409, True)
        assert statuses(made.store) == []
        ticked = fields | {"names_patients": "true"}
        assert "✓" in client.post("/check/request", data=ticked).text
        assert "waits for a, b" in client.post("/do/draft", data=ticked).text
        for one in (client, viewer):
            page = one.get("/requests/p1").text
            assert ("by PatientID (values are not shown)" in page, "CANARY" in page) == (True, False)
        listed = fields | {"id": "p2", "where": "PatientID in @withdrawn"}
        assert "waits for a, b" in client.post("/do/draft", data=listed).text
        assert "PatientID in @withdrawn" in viewer.get("/requests/p2").text


def test_the_revised_model_is_approved_and_left_again(made: Network, url: str) -> None:
    candidate(made)
    with signed_in(url) as client:
        page = client.get("/requests/mr7").text
        after = revised(made)
        assert after in page
        assert version(made.store).digest in page
        assert approve(made, client, password="another one").status_code == 403
        assert approve(made, client, why=" ").status_code == 409
        assert approve(made, client, digest="0" * 64).status_code == 409
        assert version(made.store).version == 1
        assert "Model 2 is in use" in approve(made, client).text
        assert (version(made.store).version, status(made.store, "mr7").state) == (2, State.PROMOTED)
        assert last_of_log(made)["by"] == COORDINATOR
        leaves = {"request": "mr7", "state": "promoted", "version": "2", "why": "it was worse", "password": PASSWORD}
        said = client.post("/do/rollback", data=leaves).text
        assert "Model 1 is in use again" in said
        assert "Model 1 has not forgotten mr7. A site that ran excise site forget" in said
    assert status(made.store, "mr7").state is State.ROLLED_BACK
    assert made.store.log_faults() == []


def test_a_failing_gate_wants_a_written_override(made: Network, url: str) -> None:
    candidate(made, met=False)
    with signed_in(url) as client:
        assert "✗ distance of the membership AUC" in client.get("/requests/mr7").text
        refused = approve(made, client)
        assert (refused.status_code, "cannot be verified" in refused.text) == (409, True)
        assert "Model 2" in approve(made, client, override="the test set is small").text
    assert any("the test set is small" in move.why for move in status(made.store, "mr7").moves)


def test_what_somebody_else_decided_meanwhile_is_told(made: Network, url: str) -> None:
    candidate(made)
    reject = {"request": "mr7", "state": "candidate", "why": "not good enough", "password": PASSWORD}
    with signed_in(url) as client, signed_in(url, OTHER_COORDINATOR) as other:
        assert "is rejected" in other.post("/do/reject", data=reject).text
        late = approve(made, client)
    assert late.status_code == 409
    assert f"rejected by now, since {status(made.store, 'mr7').since} by {OTHER_COORDINATOR}" in late.text


def test_of_two_who_decide_at_once_one_is_told(made: Network, url: str) -> None:
    candidate(made)
    reject = {"request": "mr7", "state": "candidate", "why": "no", "password": PASSWORD}
    answers: list[int] = []
    with signed_in(url) as client, signed_in(url, OTHER_COORDINATOR) as other:
        threads = [
            threading.Thread(target=lambda: answers.append(approve(made, client).status_code)),
            threading.Thread(target=lambda: answers.append(other.post("/do/reject", data=reject).status_code)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers) == [200, 409]
    assert made.store.log_faults() == []


@pytest.mark.parametrize(
    ("what", "state"), [("reject", "approved"), ("reject", "candidate"), ("promote", "verified"), ("leave", "promoted")]
)
def test_of_two_who_decide_the_same_at_once_one_is_told(
    made: Network, url: str, monkeypatch: pytest.MonkeyPatch, what: str, state: str
) -> None:
    if state == "approved":
        made.approved(DEVICE)
    else:
        candidate(made)
    if state == "verified":  # else one may be told of the other's verification already
        verify(made.store, made.folder, made.config, "mr7", "Ada")
    both, decides, answers = threading.Barrier(2), getattr(decisions, what), dict[str, httpx.Response]()
    form = {"request": "mr7", "state": state, "version": "2", "password": PASSWORD}

    def at_once(*told: object) -> object:
        both.wait(30)
        return decides(*told)

    def decide(name: str, client: httpx.Client) -> None:
        path = {"reject": "/do/reject", "promote": "/do/approve", "leave": "/do/rollback"}[what]
        answers[name] = client.post(path, data=form | {"why": f"as {name} says"}, timeout=60)

    with signed_in(url) as client, signed_in(url, OTHER_COORDINATOR) as other:
        if state != "approved":
            form["digest"] = revised(made)
        if state == "promoted":
            assert approve(made, client).status_code == 200
        monkeypatch.setattr(decisions, what, at_once)
        threads = [threading.Thread(target=decide, args=one) for one in ((COORDINATOR, client), (OTHER_COORDINATOR, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    first, late = sorted(answers, key=lambda name: answers[name].status_code)
    assert (answers[first].status_code, answers[late].status_code) == (200, 409), [one.text for one in answers.values()]
    now = status(made.store, "mr7")
    assert f"'mr7' is {now.state} by now, since {now.since} by {first}" in unescape(answers[late].text)
    assert (now.moves[-1].by, now.moves[-1].why) == (first, f"as {first} says")


def test_what_changes_while_a_password_is_checked_is_told(made: Network, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made.approved(DEVICE)
    confirms = Access.confirm

    def slow(self: Access, session: Session, password: str) -> None:
        confirms(self, session, password)
        made.decide("a", DEVICE, Standing.DENIED, at="2026-02-01")

    monkeypatch.setattr(Access, "confirm", slow)
    with signed_in(url) as client:
        late = client.post("/do/reject", data={"request": "mr7", "state": "approved", "why": "no", "password": PASSWORD})
    assert (late.status_code, "drafted by now, since" in late.text) == (409, True)
    assert status(made.store, "mr7").state is State.DRAFTED


def test_decisions_of_a_joined_run_name_all_of_its_requests(made: Network, url: str) -> None:
    run = joined_candidate(made)
    digest = json.loads(run_of(made.store, run).document)["description_of_modification"]["model_after"]["digest"]
    form = {"request": "mr7", "state": "candidate", "digest": digest, "why": "it forgot", "password": PASSWORD}
    with signed_in(url) as client:
        assert client.get("/requests/mr7").text.count("Together with it: mr1") == 2  # approve, reject
        assert "Promoted: mr1, mr7." in client.post("/do/approve", data=form).text
        assert client.get("/requests/mr7").text.count("Together with it: mr1") == 1
        left = client.post("/do/rollback", data=form | {"state": "promoted", "version": "2"})
        assert "Rolled back: mr1, mr7." in left.text


def test_a_run_that_is_carried_out_can_be_stopped_and_one_that_is_not_resumed(made: Network, url: str) -> None:
    made.approved(DEVICE, OTHER)
    run = prepare(made.store, made.folder, made.config, ["mr7", "mr1"], None, 0, "Ada")
    with signed_in(url) as client, ExitStack() as holds:
        holds.enter_context(held(made.store, lease_of(run.name)))
        add_event(run, "started")
        offers = partial(offered, client, "mr7")
        eventually(lambda: offers() == ["Stop…", "Reject…"], 20, "it is not shown as running")
        page = client.get("/requests/mr7").text
        assert "<strong>running</strong> since" in page
        assert "waits for nobody" in page
        assert "coordinator" not in page.split('id="standing"')[1].split("</div>")[0]
        assert page.count("Together with it: mr1") == 2  # stop, reject
        eventually(lambda: 'class="value">Running' in client.get(f"/?run={run.name}").text, 20, "nor on the Overview")
        holds.close()
        add_event(run, "stopped")
        eventually(lambda: offers() == ["Resume…", "Reject…"], 20, "it is not shown as stopped")
        page = client.get("/requests/mr7").text
        assert "▲ stopped</span></strong>; nobody carries it out since" in page
        assert "waits for the coordinator, to resume it" in page
        assert "the run is stopped" in page
        assert page.count("Together with it: mr1") == 2  # resume, reject
        stopped = '<span class="warn">▲ Stopped</span>'
        eventually(lambda: stopped in client.get(f"/?run={run.name}").text, 20, "nor on the Overview")
        assert "nobody carries it out since" in client.get(f"/?run={run.name}").text
        for path in ("/", "/requests", "/reports"):
            assert "▲ stopped" in client.get(path).text, path
        add_event(run, "failed", error="QuorumError", message="too few", exit_code=4)
        eventually(lambda: "✗ Failed" in client.get(f"/?run={run.name}").text, 20, "it is not shown as failed")
        assert offers() == ["Resume…", "Reject…"]
        assert "✗ failed</span></strong>; nobody carries it out since" in client.get("/requests/mr7").text
        reject(made.store, "mr7", OTHER_COORDINATOR, "not needed")
        eventually(lambda: "Rejected" in client.get(f"/?run={run.name}").text, 20, "it is not shown as rejected")
        assert offers() == []


def test_a_run_that_was_killed_is_shown_as_stopped_without_a_word_of_it(
    made: Network, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.approved(DEVICE)
    run = prepare(made.store, made.folder, made.config, ["mr7"], None, 0, "Ada")
    add_event(run, "started")
    with signed_in(url) as client:
        assert offered(client, "mr7") == ["Stop…", "Reject…"]  # it may be starting
        monkeypatch.setattr(waiting, "STARTS", 0.0)
        monkeypatch.setattr(watch, "AGES", 0.0)
        eventually(lambda: offered(client, "mr7") == ["Resume…", "Reject…"], 20, "it is not shown as stopped")
        eventually(lambda: "▲ Stopped" in client.get("/?run=mr7").text, 20, "its run is not shown as stopped")


def test_evidence_is_offered_once_there_is_any(made: Network, url: str) -> None:
    link = 'href="/runs/mr7/evidence.html"'
    run = ran(made, DEVICE)
    with signed_in(url) as client:
        assert link not in client.get("/requests/mr7").text
        seal(made.store, made.folder, made.config, run)
        eventually(lambda: link in client.get("/requests/mr7").text, 20, "it is not offered")
        assert client.get("/runs/mr7/evidence.html").status_code == 200


def test_the_model_in_use_and_who_runs_another(made: Network, url: str, excise: Callable[..., Any]) -> None:
    candidate(made)
    marked = 'title="runs model 2, model 1 is in use">▲ '
    with signed_in(url) as client:
        approve(made, client)
        members.told(made.store, "a", 2, "0.1.0")
        for path in ("/", "/sites"):
            eventually(lambda path=path: "model 2 is in use" in client.get(path).text, 20, "it is not shown")
            page = client.get(path).text
            assert version(made.store).digest[:12] in page
            assert marked not in page
        form = {"request": "mr7", "state": "promoted", "version": "2", "why": "no", "password": PASSWORD}
        assert client.post("/do/rollback", data=form).status_code == 200
        for path in ("/", "/sites"):
            eventually(lambda path=path: marked in client.get(path).text, 20, f"it is not marked on {path}")
            page = client.get(path).text
            assert f'model 1 is in use, <span class="digest" title="{version(made.store).digest}"' in page
            assert page.count('title="runs model') == 1  # the other told of none
        assert "▲ runs model 2, model 1 is in use" in client.get("/sites").text
    out = excise("server", "status", "--server", made.toml)[1]
    assert "let in, not connected; runs model 2, model 1 is in use" in out


def test_a_site_that_was_never_seen_is_that_everywhere(made: Network, url: str, excise: Callable[..., Any]) -> None:
    members.invite(made.store, made.folder, made.config, "c", "tests")
    with signed_in(url) as client:
        assert all("invited, never seen" in client.get(path).text for path in ("/", "/sites"))
    assert "invited, never seen" in excise("server", "status", "--server", made.toml)[1]


def test_a_rejected_run_names_all_of_its_requests(made: Network, url: str) -> None:
    joined_candidate(made)
    form = {"request": "mr1", "state": "candidate", "why": "no", "password": PASSWORD}
    with signed_in(url) as client:
        assert "'mr1', 'mr7' are rejected." in unescape(client.post("/do/reject", data=form).text)


def test_only_sites_are_awaited_where_a_model_is_approved(made: Network, url: str) -> None:
    run = ran(made, DEVICE)
    seal(made.store, made.folder, made.config, run)
    signed(made, run, "a")
    with signed_in(url) as client:
        assert "▲ Awaited: b<" in client.get("/requests/mr7").text
        signed(made, run, "b")
        eventually(lambda: "waits for the coordinator" in client.get("/requests/mr7").text, 20, "it still waits")
        assert "▲ Awaited" not in client.get("/requests/mr7").text


def test_sites_are_invited_let_in_and_revoked(made: Network, url: str) -> None:
    with signed_in(url) as client:
        shown = client.post("/do/invite", data={"site": "c"})
        assert "BEGIN" in shown.text
        assert "invited, never seen" in client.get("/sites").text
        assert "BEGIN" not in client.get("/sites").text  # once
        assert client.post("/do/invite", data={"site": "a"}).status_code == 409
        assert client.post("/do/invite", data={"site": "coordinator"}).status_code == 409  # who signs evidence by that name
        assert client.post("/do/admit", data={"site": "c", "fingerprint": "0" * 64}).status_code == 409
        assert client.post("/do/revoke", data={"site": "b", "password": "wrong wrong wrong"}).status_code == 403
        assert "is let in no more" in client.post("/do/revoke", data={"site": "b", "password": PASSWORD}).text
    assert last_of_log(made) | {"event": "site revoked", "site": "b", "by": COORDINATOR} == last_of_log(made)


def test_a_fingerprint_is_shown_nowhere(made: Network, url: str) -> None:
    made.site("c")
    sent = members.invite(made.store, made.folder, made.config, "c", "tests")
    keys, signature = made.keys("c")
    serial = members.serial_of(x509.load_pem_x509_certificate(sent.certificate.encode()))
    members.join(made.store, sites_authority(made.folder), "c", serial, keys, signature)
    assert keys.fingerprint in (made.folder / "audit.jsonl").read_text()
    with signed_in(url) as client:
        assert not [path for path in PAGES if keys.fingerprint in client.get(path).text]
        assert "asks to be let in" in client.get("/sites").text
        assert "is let in" in client.post("/do/admit", data={"site": "c", "fingerprint": keys.fingerprint}).text


def test_a_run_that_cannot_begin_says_why(made: Network, url: str) -> None:
    made.approved(DEVICE)
    with signed_in(url) as client:
        begins = {"request": "mr7", "state": "approved", "seed": "0"}
        wrong = client.post("/do/start", data=begins | {"settings": "[rounds]\ndeadlin = 3"}, timeout=120)
        assert (wrong.status_code, "deadlin" in wrong.text) == (409, True)
        assert client.post("/do/start", data=begins | {"seed": "-1"}).status_code == 422
        assert client.post("/do/stop", data={"request": "mr7", "state": "approved"}).status_code == 409
    assert status(made.store, "mr7").state is State.APPROVED


def test_what_was_typed_wrong_is_told_by_its_field_and_not_again(made: Network, url: str) -> None:
    made.approved(DEVICE)
    form = {"request": "mr7", "state": "approved"}
    with signed_in(url) as client:
        wrong = client.post("/do/start", data=form | {"seed": "1e3<b>"}, headers={"HX-Request": "true"})
        assert (wrong.status_code, wrong.text.strip()) == (422, '<p class="bad">✗ seed: expected a whole number</p>')
        assert "seed: expected 0 or more" in client.post("/do/start", data=form | {"seed": "-1"}).text
        assert "state: it is missing" in client.post("/do/stop", data={"request": "mr7"}).text
        assert "probe: expected true or false" in client.post("/do/draft", data={"probe": "CANARY"}).text
        page = client.get("/audit", params={"before": "CANARY"})
        assert (page.status_code, "before: expected a whole number" in page.text, "CANARY" in page.text) == (422, True, False)
        assert "<html" in page.text


def test_no_refusal_names_a_path_of_the_server(made: Network, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate(made)
    weights = made.config.runs / "mr7" / REVISED
    weights.write_bytes((made.config.runs / "mr7" / DEPLOYED).read_bytes())
    with signed_in(url) as client:
        refused = approve(made, client)
    assert (refused.status_code, f"{REVISED} is not the model" in refused.text) == (409, True)
    assert str(made.folder.parent) not in refused.text


def test_who_confirms_is_told_of_the_password_alone(made: Network, url: str) -> None:
    candidate(made)
    with signed_in(url) as client:
        wrong = approve(made, client, password="another password")
    assert (wrong.status_code, "the password is wrong" in wrong.text, "the name" in wrong.text) == (403, True, False)


def test_a_wrong_fingerprint_says_what_to_press(made: Network, url: str) -> None:
    made.site("c")
    invite = members.invite(made.store, made.folder, made.config, "c", "tests")
    serial = members.serial_of(x509.load_pem_x509_certificate(invite.certificate.encode()))
    members.join(made.store, sites_authority(made.folder), "c", serial, *made.keys("c"))
    with signed_in(url) as client:
        refused = client.post("/do/admit", data={"site": "c", "fingerprint": "00:11"})
        assert refused.status_code == 409
        assert "press Revoke… beside it, or excise server revoke c, and invite it again" in unescape(refused.text)
        assert "then Let in…" in client.get("/sites").text
    with signed_in(url, VIEWER) as client:
        assert "asks to be let in: excise server admit c" in client.get("/sites").text


# --- what is shown ----------------------------------------------------------------------------------------------------------


def test_the_rule_that_is_offered_can_be_read(made: Network, url: str) -> None:
    with signed_in(url) as client:
        page = client.get("/requests").text
        offered = unescape(re.search(r'id="where-help".*?<code>(.*?)</code>', page)[1])  # type: ignore[index]
        assert str(parse(offered))
        told = client.post("/check/request", data={"kind": "device", "where": offered})
        assert "✓ The rule can be read" in told.text
    assert page.count(">Requests</h1>") == 1
    assert ">Requests</h2>" not in page


def test_of_a_request_that_is_done_with_nothing_is_to_be_decided(made: Network, url: str) -> None:
    candidate(made)
    with signed_in(url) as client:
        assert "Decide…" in client.get("/").text
        reject(made.store, "mr7", "Ada", "no")
        eventually(lambda: "Look…" in client.get("/").text, 20, "the page does not hear of it")
        assert "Decide…" not in client.get("/").text


def test_the_log_says_nothing_of_what_is_empty(made: Network, url: str) -> None:
    with httpx.Client(base_url=url) as client:
        assert client.post("/login", data={"name": "a name of nobody", "password": "wrong"}).status_code == 401
    draft(made.store, DEVICE, ("a", "b"), "Ada")
    with signed_in(url) as client:
        page = re.sub(r"<[^>]+>", " ", client.get("/audit").text)
        glance = re.sub(r"<[^>]+>", "", client.get("/").text)
    assert re.search(r"sign-in failed\s+an unknown name\s+address 127.0.0.1", page.replace("  ", " "))
    assert re.search(r"sites\s+a, b", page)
    assert "null" not in page
    assert "sign-in failed by an unknown name" in glance
    assert "a name of nobody" not in page + glance


def test_hostile_text_is_text(made: Network, url: str) -> None:
    hostile = "<script>alert(1)</script>\" onload='x' {{7*7}}"
    request = DEVICE.model_copy(update={"reason": hostile})
    draft(made.store, request, (), hostile, hostile)
    with signed_in(url) as client:
        for path in (*PAGES, "/requests/mr7"):
            page = client.get(path).text
            assert "<script>alert" not in page, path
            assert " onload='x'" not in page, path
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in client.get("/requests/mr7").text
        odd = client.get("/", params={"run": hostile})
        assert odd.status_code == 404
        assert "<script>alert" not in odd.text


def test_an_empty_store_is_shown(tmp_path: Path) -> None:
    with network(tmp_path) as empty, serving(app_of(with_users(empty))) as url, signed_in(url) as client:
        for path in PAGES:
            assert client.get(path).status_code == 200, path
        assert "No site was invited yet" in client.get("/sites").text
        charts = client.get("/parts", params={"names": CHARTS}).json()
        assert all(one["missing"] for one in charts.values())


def test_a_malformed_event_is_told_and_the_rest_is_shown(made: Network, url: str) -> None:
    run = candidate(made)
    with (made.config.runs / run / "events.jsonl").open("a") as file:
        file.write('{"event": "unlearned_round", "round": "<b>one</b>"}\nnot json at all\n')
    with signed_in(url) as client:
        page = client.get("/").text
    assert "2 malformed lines in events.jsonl" in page
    assert "held-out accuracy: +0.000 (may fall by 0.010 at most)" in page


def planted(made: Network) -> str:
    """A run beside a copy of it, with canaries wherever pages read and must not show: a rule's values, paths, unknown keys."""
    patients = {"kind": RequestKind.PATIENTS, "where": "PatientID = CANARY-PATIENT"}
    run = candidate(made, asked=DEVICE.model_copy(update=patients))
    at, copy = made.config.runs / run, made.config.runs / "copy"
    told = json.loads((at / "metrics.json").read_text()) | {"CANARY-KEY": "CANARY-TEXT"}
    for table in (told["unlearned"], told["unlearned"]["pooled"], told["verification"], told["unlearned"]["sites"]["a"]):
        table["CANARY-KEY"] = 0.25
    (at / "metrics.json").write_text(json.dumps(told))
    shutil.copytree(at, copy)
    for folder in (at, copy):
        plan = tomllib.loads((folder / "plan.toml").read_text())
        plan |= {key: f"/srv/CANARY-{folder.name}/{key}.safetensors" for key in ("deployed", "retrained")}
        (folder / "plan.toml").write_text(tomli_w.dumps(plan | {"note": "CANARY-NOTE"}))
    for toml in made.sites.values():
        for name in ("labels.csv", "lists/withdrawn.txt", "state/index.jsonl"):
            (toml.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (toml.parent / name).write_text("CANARY-SITE\n")
    return run


def test_what_pages_must_not_tell_is_nowhere(made: Network, url: str) -> None:
    run = planted(made)
    frames: list[str] = []

    def read() -> None:
        with signed_in(url, OTHER_COORDINATOR) as client, client.stream("GET", "/events") as stream:
            for line in stream.iter_lines():
                frames.append(line)
                if "run:mr7" in line:
                    return

    thread = threading.Thread(target=read)
    thread.start()
    failed = {"error": "StorageError", "message": "cannot write /srv/CANARY-FAILED/metrics.json: disk full", "exit_code": 5}
    with signed_in(url) as client:
        eventually(lambda: bool(frames), 20, "no frame comes")
        with (made.config.runs / run / "events.jsonl").open("a") as file:
            file.write(json.dumps({"at": "2026-01-01T00:00:00.000+00:00", "event": "failed"} | failed) + "\n")
        thread.join(20)
        assert not thread.is_alive()
        overview = client.get("/", params={"run": run}).text
        assert "failed: cannot write metrics.json: disk full" in overview
        compared = client.get("/compare", params={"a": run, "b": "copy"}).text
        assert "Settings" in compared
        asked = client.get("/requests/mr7").text
        assert "by PatientID (values are not shown)" in asked
        shown = [overview, compared, asked, *(client.get(path).text for path in PAGES)]
        names = f"{CHARTS},headline,sites,requests,gates,audit"
        shown += [client.get("/parts", params={"names": names, "run": name}).text for name in ("", run, "copy")]
        documents = [client.get(f"/runs/{run}/{name}").text for name in ("evidence.html", "evidence.json")]
    assert not [line for text in (*shown, *frames) for line in text.splitlines() if "CANARY" in line]
    assert not any("CANARY-SITE" in text for text in documents)  # the rule is in the evidence, which every site signs


def test_runs_alone_are_shown_to_whoever_has_the_address(tmp_path: Path, made: Network) -> None:
    candidate(made)
    app = create_app(runs_in(made.config.runs), by_token("t" * 43))
    with serving(app) as url, httpx.Client(base_url=url) as client:
        assert client.get("/enter", params={"token": "x" * 43}).status_code == 401
        assert client.post("/login", data={"name": COORDINATOR, "password": PASSWORD}).status_code == 401
        assert client.get("/enter", params={"token": "t" * 43}).status_code == 303
        page = client.get("/").text
        assert "mr7" in page
        assert "/do/" not in page
        client.headers["X-CSRF"] = page.split('name="csrf" content="')[1].split('"')[0]
        assert client.post("/do/invite", data={"site": "c"}).status_code == 403


def test_a_run_of_a_folder_alone_is_stopped_when_its_process_was_killed(
    made: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made.config.runs / ran(made, DEVICE)
    monkeypatch.setattr(watch, "AGES", 0.0)
    app = create_app(runs_in(made.config.runs), by_token("t" * 43))
    with serving(app) as url, httpx.Client(base_url=url) as client:
        client.get("/enter", params={"token": "t" * 43})

        def parts() -> str:
            return client.get("/parts", params={"names": "headline,requests,reports", "run": run.name}).text

        with carrying_out(run):
            eventually(lambda: "Running" in parts(), 20, "it is not shown as running")
            assert "topped" not in parts()
        for page in ("headline", "requests", "reports"):
            shown = partial(client.get, "/parts", params={"names": page, "run": run.name})
            eventually(lambda shown=shown: "▲ " in unescape(shown().json().popitem()[1]), 20, f"{page} does not show it")
        told = client.get("/parts", params={"names": "headline,requests,reports", "run": run.name}).json()
    assert "▲ Stopped" in told["headline"]
    assert "nobody carries it out since" in told["headline"]
    assert "▲ stopped" in told["requests"]
    assert "▲ stopped" in told["reports"]


def test_documents_of_a_run_are_given_out_sealed(made: Network, url: str) -> None:
    run = candidate(made)
    with signed_in(url) as client:
        page = client.get(f"/runs/{run}/evidence.html")
        assert "sandbox" in page.headers["content-security-policy"]
        assert "script-src" not in page.headers["content-security-policy"]
        kept = client.get(f"/runs/{run}/evidence.json", params={"download": True})
        assert f'filename="{run}-evidence.json"' in kept.headers["content-disposition"]
        assert kept.json()["document"]["format"].startswith("excise evidence")
        assert client.get(f"/runs/{run}/report.html").status_code == 404


def test_documents_are_given_out_as_pdf(made: Network, url: str) -> None:
    run = candidate(made)
    with signed_in(url, VIEWER) as client:
        assert f"/runs/{run}/evidence.pdf" in client.get("/reports").text
        one = client.get(f"/runs/{run}/evidence.pdf", timeout=120)
        assert (one.status_code, one.headers["content-type"], one.content[:5]) == (200, "application/pdf", b"%PDF-")
        again = client.get(f"/runs/{run}/evidence.pdf", params={"download": True}, timeout=120)
        assert again.content == one.content
        assert again.headers["content-disposition"] == f"attachment; filename*=UTF-8''{run}-evidence.pdf"
        assert client.get(f"/runs/{run}/report.pdf").status_code == 404
        assert client.get(f"/runs/{run}/events.pdf").status_code == 404
        assert client.get("/runs/nowhere/evidence.pdf").status_code == 404
        page = made.config.runs / run / "evidence.html"
        page.write_bytes(b"\xff")
        refused = client.get(f"/runs/{run}/evidence.pdf", timeout=120)
        assert refused.status_code == 404
        assert f"{run}/evidence.html is no HTML page" in refused.text
        assert str(made.folder.parent) not in refused.text


def test_only_those_who_are_signed_in_get_a_pdf(made: Network, url: str) -> None:
    run = candidate(made)
    assert httpx.get(f"{url}/runs/{run}/evidence.pdf").status_code == 401


def test_a_log_that_was_taken_away_is_shown_as_that(made: Network, url: str) -> None:
    candidate(made)
    with signed_in(url) as client:
        (made.folder / "audit.jsonl").rename(made.folder / "elsewhere")
        eventually(lambda: "it was taken away" in client.get("/audit").text, 20, "the page does not notice")
        page = client.get("/")
        assert page.status_code == 200
        assert str(made.folder) not in page.text
        late = client.post("/do/invite", data={"site": "c"})
        assert late.status_code == 503
        assert str(made.folder) not in late.text
        (made.folder / "elsewhere").rename(made.folder / "audit.jsonl")
        assert client.post("/do/invite", data={"site": "c"}).status_code == 200


def test_a_session_has_so_many_streams(url: str) -> None:
    with signed_in(url) as client, ExitStack() as streams:
        held = []  # a stream whose lines nobody holds is closed
        for _ in range(STREAMS):
            held.append(streams.enter_context(client.stream("GET", "/events")).iter_lines())
            assert next(held[-1])
        with client.stream("GET", "/events") as refused:
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")


def test_an_open_page_keeps_nobody_signed_in(made: Network) -> None:
    app = app_of(made)
    with serving(app) as url, signed_in(url) as client:
        (before,) = [one.seen for one in app.state.access.sessions._sessions.values()]
        with client.stream("GET", "/events") as stream:
            assert next(stream.iter_lines())
        assert client.get("/me").status_code == 200
        assert [one.seen for one in app.state.access.sessions._sessions.values()] == [before]
        client.get("/requests")
        assert [one.seen for one in app.state.access.sessions._sessions.values()] > [before]


def test_of_many_who_want_a_pdf_the_last_are_asked_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(page: Path) -> bytes:
        await asyncio.sleep(0.2)
        return page.read_bytes()

    async def many() -> list[object]:
        printer = Printer()
        return await asyncio.gather(*(printer.print(page) for page in pages), return_exceptions=True)

    monkeypatch.setattr("excise.server.dashboard.printing._made", slow)
    pages = [tmp_path / f"{number}.html" for number in range(QUEUE + 2)]
    for page in pages:
        page.write_text(page.name)
    made = asyncio.run(many())
    assert made[:QUEUE] == [page.name.encode() for page in pages[:QUEUE]]
    assert [getattr(one, "status", None) for one in made[QUEUE:]] == [429, 429]


def test_files_are_packed_and_known_again(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        first = client.get("/static/vendor/echarts.min.js")
        assert first.headers["content-encoding"] == "gzip"
        assert int(first.headers["content-length"]) < len(first.content) / 2
        plain = client.get("/static/vendor/echarts.min.js", headers={"Accept-Encoding": "identity"})
        assert plain.content == first.content
        again = client.get("/static/vendor/echarts.min.js", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_requests_are_begun_together(made: Network, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[tuple[object, ...]]()
    monkeypatch.setattr(Runner, "start", lambda self, *told: begun.append(told))
    made.approved(DEVICE, OTHER)
    asked = {"request": "mr7", "state": "approved", "together": ["mr1"], "seed": 3}
    with signed_in(url) as client:
        assert 'name="together" value="mr1"' in client.get("/requests/mr7").text
        assert "mr7, mr1" in client.post("/do/start", data=asked).text
        assert begun == [(["mr7", "mr1"], COORDINATOR, 3, "")]
        for other in ("--server=/elsewhere", "mr9"):
            assert client.post("/do/start", data=asked | {"together": [other]}).status_code == 409
        reject(made.store, "mr1", OTHER_COORDINATOR, "not needed")
        late = client.post("/do/start", data=asked)
        assert late.status_code == 409
        assert "rejected by now, since" in late.text
    assert len(begun) == 1


def test_a_run_of_which_nothing_is_known_yet_is_not_told_as_begun(
    made: Network, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "start", lambda *_: "It is not known yet")
    made.approved(DEVICE)
    with signed_in(url) as client:
        told = client.post("/do/start", data={"request": "mr7", "state": "approved"})
    assert (told.status_code, "▲ It is not known yet" in told.text, "carried out" in told.text) == (200, True, False)


def test_a_change_comes_over_the_stream(made: Network, url: str) -> None:
    candidate(made)
    topics: list[str] = []

    def read() -> None:
        with signed_in(url) as client, client.stream("GET", "/events") as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    topics.extend(json.loads(line[6:])["topics"])
                    if "requests" in topics and "run:mr7" in topics:
                        return

    thread = threading.Thread(target=read)
    thread.start()
    with signed_in(url):
        draft(made.store, OTHER, (), "tests")
        with (made.config.runs / "mr7" / "events.jsonl").open("a") as file:
            file.write('{"at": "2026-01-01T00:00:00.000+00:00", "event": "awaiting"}\n')
        thread.join(20)
    assert not thread.is_alive()
    assert {"requests", "audit", "runs", "run:mr7"} <= set(topics)
