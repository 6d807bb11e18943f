"""The coordinator's service over real TLS: who may call what, for whom; what is refused, and in which words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from excise.client import coordinator as calls
from excise.client.config import CoordinatorSettings, read_site_config
from excise.client.coordinator import CoordinatorRefused, CoordinatorSilent, connected, secured
from excise.client.joining import join, renew
from excise.client.requests import Requests
from excise.common.api import coordinator_pb2 as pb
from excise.common.api.coordinator_pb2_grpc import CoordinatorStub
from excise.common.decision import Decision, Standing
from excise.common.errors import ConfigError
from excise.common.signing import read_key, sign
from excise.server import members, requests
from excise.server.api import access
from excise.server.evidence import seal
from excise.server.life import State
from excise.server.setup import AUTHORITY, init
from excise.server.standing import standing_of
from tests.candidates import ran
from tests.candidates import signed as signed_by
from tests.coordinators import DEVICE, OTHER, Network, listening, network


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path) as one, listening(one):
        yield one


def settings_of(toml: Path) -> CoordinatorSettings:
    settings = read_site_config(toml).coordinator
    assert settings is not None
    return settings


def signed(toml: Path, standing: Standing = Standing.APPROVED) -> tuple[Decision, str]:
    decision = Decision(DEVICE.digest, standing, "Dr. Noether", "", "2026-01-01")
    return decision, sign(read_key(toml.parent / "keys" / "signing.pem"), decision.text())


def test_a_site_joins_by_its_invite_and_is_let_in_by_a_person(made: Network) -> None:
    toml = made.site("a")
    invite = members.invite(made.store, made.folder, made.config, "a", "tests")
    fingerprint = join(toml, invite, invite.fingerprint)
    settings = settings_of(toml)
    with (
        connected(toml.parent, settings) as coordinator,
        pytest.raises(CoordinatorRefused, match="not let in yet") as refused,
    ):
        coordinator.report(None)
    with pytest.raises(ConfigError, match="is not that of the keys which came") as differs:
        members.admit(made.store, "a", "00" * 32, "tests")
    told = f"{refused.value} {differs.value} {standing_of(made.store, made.config, {})}"
    assert fingerprint not in told  # it comes by telephone
    members.admit(made.store, "a", fingerprint, "tests")
    with connected(toml.parent, settings) as coordinator:
        coordinator.report(None)
    members.revoke(made.store, "a", "tests")
    with connected(toml.parent, settings) as coordinator, pytest.raises(CoordinatorRefused, match="no more"):
        coordinator.report(None)


def test_an_invite_is_used_once_and_by_the_same_site_again(made: Network) -> None:
    made.site("a")
    made.site("b")
    invite = members.invite(made.store, made.folder, made.config, "a", "tests")
    identity = f"{invite.key}{invite.certificate}".encode()
    with secured(invite.api, invite.authority.encode(), identity) as coordinator:
        first = coordinator.join(*made.keys("a"))
        assert coordinator.join(*made.keys("a")) == first  # its answer was lost on the way
        with pytest.raises(CoordinatorRefused, match="was used already, with other keys"):
            coordinator.join(*made.keys("b"))
        with pytest.raises(CoordinatorRefused, match="an invite may only join"):
            coordinator.submit(DEVICE)
    with pytest.raises(ConfigError, match="there is a site 'a', asking"):
        members.invite(made.store, made.folder, made.config, "a", "tests")


def test_a_replaced_invite_counts_no_more(made: Network) -> None:
    made.site("a")
    old = members.invite(made.store, made.folder, made.config, "a", "tests")
    members.invite(made.store, made.folder, made.config, "a", "tests")
    with (
        secured(old.api, old.authority.encode(), f"{old.key}{old.certificate}".encode()) as coordinator,
        pytest.raises(CoordinatorRefused, match="counts no more"),
    ):
        coordinator.join(*made.keys("a"))


def test_keys_of_another_cannot_be_handed_in(made: Network) -> None:
    made.join("a")
    made.site("b")
    invite = members.invite(made.store, made.folder, made.config, "b", "tests")
    keys, signature = made.keys("b")
    other = made.keys("a")[0]
    with secured(invite.api, invite.authority.encode(), f"{invite.key}{invite.certificate}".encode()) as coordinator:
        for wrong in (replace(keys, signing=other.signing), replace(keys, node=other.node), replace(keys, request="none")):
            with pytest.raises(CoordinatorRefused):
                coordinator.join(wrong, signature)
        coordinator.join(keys, signature)


@pytest.mark.parametrize("who", ["nobody", "self-signed", "another coordinator's site"])
def test_who_has_no_certificate_of_ours_does_not_get_through(made: Network, tmp_path: Path, who: str) -> None:
    authority = (made.folder / AUTHORITY).read_bytes()
    if who == "nobody":
        credentials = grpc.ssl_channel_credentials(authority)
    else:
        other = init(tmp_path / "other", "other", ["localhost"], 1, 2, 3)
        from excise.server.config import store_of

        with store_of(tmp_path / "other" / "server.toml") as store:
            foreign = members.invite(store, tmp_path / "other", other, "a", "tests")
        key = foreign.key.encode()
        own = (
            (tmp_path / "other" / "keys" / "server.crt").read_bytes() if who == "self-signed" else foreign.certificate.encode()
        )
        if who == "self-signed":
            key = (tmp_path / "other" / "keys" / "server.key").read_bytes()
        credentials = grpc.ssl_channel_credentials(authority, key, own)
    with grpc.secure_channel(made.config.api, credentials) as channel, pytest.raises(grpc.RpcError) as refused:
        CoordinatorStub(channel).ListModels(pb.Nothing(), metadata=calls.METADATA, timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_server_of_another_authority_is_not_believed(made: Network, tmp_path: Path) -> None:
    toml = made.join("a")
    init(tmp_path / "other", "other", ["localhost"], 1, 2, 3)
    identity = (toml.parent / calls.IDENTITY).read_bytes()
    foreign = (tmp_path / "other" / AUTHORITY).read_bytes()
    with secured(made.config.api, foreign, identity) as coordinator, pytest.raises(CoordinatorSilent):
        coordinator.report(None)


def test_plain_text_does_not_get_through(made: Network) -> None:
    with grpc.insecure_channel(made.config.api) as channel, pytest.raises(grpc.RpcError):
        CoordinatorStub(channel).ListModels(pb.Nothing(), metadata=calls.METADATA, timeout=20)


@pytest.mark.parametrize("spoken", [(), (("excise-protocol", "0"),), (("excise-protocol", "2"),)])
def test_another_protocol_is_refused_and_told(
    made: Network, spoken: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = made.join("a")
    monkeypatch.setattr(calls, "METADATA", spoken)
    with (
        connected(toml.parent, settings_of(toml)) as coordinator,
        pytest.raises(CoordinatorRefused, match="speaks protocol 1, the call is of protocol"),
    ):
        coordinator.report(None)


def test_requests_go_round(made: Network) -> None:
    a, b = made.join("a"), made.join("b")
    with connected(a.parent, settings_of(a)) as of_a, connected(b.parent, settings_of(b)) as of_b:
        drafted = of_a.submit(DEVICE)
        assert (drafted.state, drafted.waits_for, drafted.standing) == ("drafted", ("a", "b"), "pending")
        assert of_a.submit(DEVICE) == drafted  # twice is once
        seen = of_b.watch()
        assert next(seen).request == DEVICE
        assert of_a.decide("mr7", *signed(a)).waits_for == ("b",)
        assert next(seen).waits_for == ("b",)
        assert of_b.decide("mr7", *signed(b)).state == "approved"
        assert next(seen).state == "approved"


def test_a_site_hears_that_its_signature_is_awaited(made: Network, excise: Callable[..., Any]) -> None:
    a, _ = made.join("a"), made.join("b")
    made.deployed()
    run = ran(made, DEVICE)
    seal(made.store, made.folder, made.config, run)

    def heard() -> tuple[str, ...]:
        kept = Requests(a.parent)
        with connected(a.parent, settings_of(a)) as coordinator:
            told = next(coordinator.watch())
        kept.arrive(told.request)
        kept.note(told.request, told.state, told.since, told.waits_for)
        return told.waits_for

    asked = ("--server", made.toml)
    assert heard() == ("a", "b")
    (one,) = standing_of(made.store, made.config, {})["requests"]
    assert one["waits_for"] == ["a", "b"]
    assert json.loads(excise("server", "requests", "show", "mr7", "--json", *asked)[1])["waits_for"] == ["a", "b"]
    assert json.loads(excise("server", "requests", "list", "--json", *asked)[1])[0]["waits_for"] == ["a", "b"]
    assert "Evidence to sign: mr7: excise site sign mr7" in excise("site", "status", "--site", a)[1]
    assert json.loads(excise("site", "status", "--json", "--site", a)[1])["to_sign"] == ["mr7"]
    assert "candidate, waits for a, b" in excise("site", "requests", "show", "mr7", "--site", a)[1]
    Requests(a.parent).signed_evidence(DEVICE, "a")  # as excise site sign does
    assert Requests(a.parent).noted(DEVICE)["waits_for"] == ["b"]
    signed_by(made, run, "a")
    assert heard() == ("b",)
    assert "Evidence to sign" not in excise("site", "status", "--site", a)[1]
    signed_by(made, run, "b")
    assert heard() == (requests.COORDINATOR,)
    requests.move(made.store, ["mr7"], State.REJECTED, "Ada", "")
    assert heard() == ()
    (told,) = json.loads(excise("site", "requests", "list", "--json", "--site", a)[1])
    assert told["coordinator"]["state"] == "rejected"
    shown = excise("site", "requests", "list", "--site", a)[1]
    assert ("at the" in shown, "rejected" in shown) == (True, True)


def test_a_site_speaks_for_itself_alone_and_hears_of_what_concerns_it(made: Network) -> None:
    a, b = made.join("a"), made.join("b")
    requests.draft(made.store, DEVICE, ["a"], "tests")
    requests.draft(made.store, OTHER, ["b"], "tests")
    with connected(b.parent, settings_of(b)) as of_b:
        assert [one.request.id for one in itertools.islice(of_b.watch(), 1)] == ["mr1"]
        for wrong in (lambda: of_b.decide("mr7", *signed(b)), lambda: of_b.decide("none", *signed(b))):
            with pytest.raises(CoordinatorRefused, match=r"no request '(mr7|none)' concerns 'b'"):
                wrong()
        with pytest.raises(CoordinatorRefused, match="no evidence of 'mr7' concerns 'b'"):
            of_b.evidence("mr7")
        with pytest.raises(CoordinatorRefused, match="no evidence"):
            of_b.sign_evidence("mr7", "00", "00")
    with connected(a.parent, settings_of(a)) as of_a:
        with pytest.raises(CoordinatorRefused, match="not signed with the key of 'a'"):
            of_a.decide("mr7", *signed(b))
        changed = DEVICE.model_copy(update={"reason": "another"})
        with pytest.raises(CoordinatorRefused, match="one id is carried out once"):
            of_a.submit(changed)


def test_a_certificate_is_renewed_and_one_of_an_earlier_joining_is_refused(made: Network) -> None:
    toml = made.join("a")
    before = (toml.parent / calls.IDENTITY).read_bytes()
    renew(toml)
    assert (toml.parent / calls.IDENTITY).read_bytes() != before
    with connected(toml.parent, settings_of(toml)) as coordinator:
        coordinator.report(None)


def test_what_is_malformed_is_refused_in_words(made: Network) -> None:
    toml = made.join("a")
    with connected(toml.parent, settings_of(toml)) as coordinator:
        stub = coordinator._stub
        for call, message, code in (
            (stub.Submit, pb.Document(text="no JSON"), grpc.StatusCode.INVALID_ARGUMENT),
            (stub.Decide, pb.Decision(request="mr7", text="[]", signature="x"), grpc.StatusCode.INVALID_ARGUMENT),
            (stub.Submit, pb.Document(text="x" * (5 << 20)), grpc.StatusCode.RESOURCE_EXHAUSTED),
            (stub.Renew, pb.Renewal(request="none"), grpc.StatusCode.FAILED_PRECONDITION),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(message, metadata=calls.METADATA, timeout=20)
            assert refused.value.code() == code
            assert "Traceback" not in refused.value.details()


def test_who_calls_too_often_waits(made: Network) -> None:
    toml = made.join("a")

    def calls_on() -> None:
        with connected(toml.parent, settings_of(toml)) as coordinator:
            for _ in range(10 * access.BURST):
                coordinator.report(None)

    with pytest.raises(CoordinatorRefused, match="too many calls"):
        calls_on()


def test_limits_fill_up_again_and_are_each_callers_own() -> None:
    at = [0.0]
    limits = access.Limits(lambda: at[0])
    for _ in range(access.BURST):
        limits.count("a")
    with pytest.raises(access.Refused):
        limits.count("a")
    limits.count("b")
    at[0] += 1
    for _ in range(int(access.RATE)):
        limits.count("a")
    with pytest.raises(access.Refused):
        limits.count("a")
    for _ in range(access.STREAMS):
        limits.begin("a")
    with pytest.raises(access.Refused):
        limits.begin("a")
    limits.end("a")
    limits.begin("a")


def test_the_health_service_answers_and_there_is_no_reflection(made: Network) -> None:
    toml = made.join("a")
    identity = (toml.parent / calls.IDENTITY).read_bytes()
    begin = identity.find(b"-----BEGIN CERT")
    credentials = grpc.ssl_channel_credentials((made.folder / AUTHORITY).read_bytes(), identity[:begin], identity[begin:])
    with grpc.secure_channel(made.config.api, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING
        reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError) as refused:
            list(reflect(iter([b""]), timeout=20))
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_fault_of_ours_is_an_incident_and_its_text_stays(
    made: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    toml = made.join("a")

    def fails(*_: object) -> None:
        raise KeyError("a secret path")

    monkeypatch.setattr(members, "told", fails)
    with (
        connected(toml.parent, settings_of(toml)) as coordinator,
        pytest.raises(CoordinatorRefused, match=r"incident [0-9a-f]{16}") as error,
    ):
        coordinator.report(None)
    assert "secret" not in str(error.value)
    assert "a secret path" in caplog.text


def test_a_model_comes_in_chunks_from_an_offset(made: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    made.deployed()
    toml = made.join("a")
    monkeypatch.setattr("excise.server.api.service.CHUNK", 1000)
    with connected(toml.parent, settings_of(toml)) as coordinator:
        (model,) = coordinator.models(settings_of(toml).key)
        whole = list(coordinator.fetch(1, 0))
        assert [offset for offset, _ in whole] == list(range(0, model.size, 1000))
        rest = b"".join(data for _, data in coordinator.fetch(1, 1500))
        assert rest == b"".join(data for _, data in whole)[1500:]
        for version, offset in ((1, model.size + 1), (1, -1), (2, 0)):
            with pytest.raises(CoordinatorRefused):
                list(coordinator.fetch(version, offset))
