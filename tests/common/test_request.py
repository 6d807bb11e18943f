"""Forget requests: the same after every round trip, and a clear word about every fault."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from pydantic import ValidationError

from excise.common.errors import PredicateError, RequestError
from excise.common.predicate_parser import parse
from excise.common.request import Acceptance, ForgetRequest, RequestKind, joined
from excise.common.settings import PRESETS
from tests.strategies import requests

TOML = """
id = "scanner-7-retired"
kind = "device"
where = 'StationName = "MR7" and StudyDate range 20190101..'
reason = "coil fault"
at = 2025-01-31T12:00:00Z

[acceptance]
worst_site_drop = 0.05
"""


@given(requests())
def test_round_trips(request_: ForgetRequest) -> None:
    assert ForgetRequest.from_toml(request_.to_toml()) == request_
    assert ForgetRequest.from_json(request_.to_json()) == request_
    assert ForgetRequest.model_validate_json(request_.model_dump_json()) == request_  # how it travels in a message
    assert ForgetRequest.from_toml(request_.to_toml()).digest == request_.digest
    assert hash(ForgetRequest.from_json(request_.to_json())) == hash(request_)


def test_reads_toml() -> None:
    request = ForgetRequest.from_toml(TOML)
    assert request.kind is RequestKind.DEVICE
    assert request.predicate == parse(request.where)
    assert request.predicate is request.predicate
    assert request.acceptance == Acceptance(worst_site_drop=0.05)
    assert (request.preference, request.legal_basis) == (0.5, "")
    assert request.at == datetime(2025, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_reads_a_file(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "request.toml"
    path.write_text(mark + TOML, encoding="utf-8")
    assert ForgetRequest.from_toml(path) == ForgetRequest.from_toml(TOML)


def test_digest_is_of_the_canonical_text() -> None:
    request = ForgetRequest.from_toml(TOML)
    text = (  # sites sign it, so a change of this text breaks the evidence of earlier requests
        '{"acceptance":{"forget_class_accuracy":0.02,"held_out_drop":0.01,"membership_tolerance":0.05,'
        '"retain_drop":0.01,"worst_site_drop":0.05},'
        '"at":"2025-01-31T12:00:00Z","id":"scanner-7-retired","kind":"device","legal_basis":"","preference":0.5,'
        '"reason":"coil fault","requested_by":"","where":"StationName = \\"MR7\\" and StudyDate range 20190101.."}'
    )
    assert request.to_json() == text
    assert request.digest == hashlib.sha256(text.encode()).hexdigest()
    assert request.model_copy(update={"reason": "other"}).digest != request.digest


def test_a_request_from_before_the_linear_probe_keeps_its_digest() -> None:
    request = ForgetRequest(
        id="p",
        kind=RequestKind.PATIENTS,
        where="PatientID in @withdrawn",
        reason="consent withdrawn",
        legal_basis="GDPR Art. 17 (1) b",
        preference=0.7,
        acceptance=Acceptance(held_out_drop=0.02),
        requested_by="DPO",
        at=datetime(2025, 1, 31, 12, tzinfo=UTC),
    )
    # Recorded before the field was there: approvals are signatures over it.
    assert request.digest == "5fc81dc4913bc0e3ae4a97af9fff60861cd9d94958af72204b34345116bde907"
    for text in (request.to_json(), request.to_toml(), request.model_dump_json()):
        assert "linear_probe" not in text  # sites of an earlier release refuse a key that they do not know
    other = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where='StationName = "MR7"', reason="coil fault")
    assert other.digest == "1253a4dccb98e71e0831de2063cbe5d5fd1a24c75541e5d5aeea8e0d9775a076"
    assert joined([other, request]).digest == "ad691792923edf4d1f3c4285b2a7ad301d2a5838169308995b3ebdfae0e36b94"


def test_who_asks_for_the_linear_probe_has_another_digest() -> None:
    plain, asking = (ForgetRequest.from_toml(f"linear_probe = {told}\n{TOML}") for told in ("false", "true"))
    assert plain == ForgetRequest.from_toml(TOML)
    assert '"linear_probe":true' in asking.to_json()
    assert asking.digest != plain.digest
    assert joined([plain.model_copy(update={"id": "b"}), asking]).linear_probe


def test_a_copy_has_its_own_predicate() -> None:
    request = ForgetRequest.from_toml(TOML)
    assert request.predicate == parse(request.where)
    assert request.model_copy(update={"where": "class = a"}).predicate == parse("class = a")


@pytest.mark.parametrize(
    "at",
    [
        datetime(2025, 1, 31, 12),
        datetime(2025, 1, 31, 14, tzinfo=timezone(timedelta(hours=2))),
        "2025-01-31T12:00:00Z",
        "2025-01-31 12:00",
    ],
)
def test_time_is_told_in_utc(at: datetime | str) -> None:
    document = {**ForgetRequest.from_toml(TOML).model_dump(), "at": at}
    assert ForgetRequest.model_validate(document) == ForgetRequest.from_toml(TOML)


def test_a_day_is_its_first_moment() -> None:
    assert ForgetRequest.from_toml(TOML.replace("T12:00:00Z", "")).at == datetime(2025, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('kind = "device"', "", ["missing key 'kind'", "A request needs id, kind, where and reason"]),
        ('kind = "device"', 'kind = "devise"', ["kind: ", "'device', 'patients'", "got 'devise'"]),
        ("reason", "raeson", ["unknown key 'raeson': did you mean 'reason'?", "missing key 'reason'"]),
        ("worst_site_drop", "worst_drop", ["unknown key 'acceptance.worst_drop': did you mean 'worst_site_drop'?"]),
        ("0.05", "5", ["acceptance.worst_site_drop: ", "less than or equal to 1, got 5"]),
        ("scanner-7-retired", "Scanner 7", ["id: ", "got 'Scanner 7'"]),
        ("scanner-7-retired", "a" * 65, ["id: "]),
        ('"coil fault"', '""', ["reason: "]),
        ('"coil fault"', "7", ["reason: ", "got 7"]),
        ("at = 2025-01-31T12:00:00Z", "at = 2025", ["at: ", "such as 2025-01-31T12:00:00Z", "got 2025"]),
        ("at = 2025-01-31T12:00:00Z", 'at = "yesterday"', ["at: ", "got 'yesterday'"]),
        ("at = 2025-01-31T12:00:00Z", "at = 12:00:00", ["at: "]),
        ("at = 2025-01-31T12:00:00Z", "at = 0001-01-01T00:00:00+05:00", ["at: ", "calendar"]),
        ("at =", "preference = 1.5\nat =", ["preference: ", "got 1.5"]),
        ("at =", "preference = nan\nat =", ["preference: ", "finite"]),
        ("[acceptance]", "[acceptance", ["not TOML", "line 8"]),
        (TOML, "request.toml", ["not TOML", "pass a pathlib.Path"]),
        (TOML, "x = " + "[" * 100_000, ["not TOML"]),
    ],
)
def test_faults_are_named(old: str, new: str, says: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        ForgetRequest.from_toml(TOML.replace(old, new))
    for words in says:
        assert words in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        ForgetRequest.from_toml(TOML.replace('"coil fault"', "7").replace("0.05", "5"))
    assert "reason: " in str(caught.value)
    assert "worst_site_drop: " in str(caught.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nothing\.toml: cannot be read"):
        ForgetRequest.from_toml(tmp_path / "nothing.toml")
    with pytest.raises(RequestError, match="cannot be read"):
        ForgetRequest.from_toml(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'id = "\xe9"')
    with pytest.raises(RequestError, match=r"latin\.toml: not UTF-8"):
        ForgetRequest.from_toml(tmp_path / "latin.toml")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"id": "\\ud800"}'])
def test_bad_json_is_a_request_error(text: str) -> None:
    with pytest.raises(RequestError):
        ForgetRequest.from_json(text)


@pytest.mark.parametrize("key", ["where", "reason", "legal_basis", "requested_by"])
def test_text_that_is_not_unicode_is_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        ForgetRequest.model_validate(
            {"id": "a", "kind": "device", "where": "class = a", "reason": "r", key: 'class = "\ud800"'}
        )


def test_a_bad_predicate_keeps_its_position() -> None:
    with pytest.raises(PredicateError, match="did you mean 'StationName'") as caught:
        ForgetRequest.from_toml(TOML.replace("StationName", "StationNam"))
    assert caught.value.position == 0
    with pytest.raises(PredicateError):
        ForgetRequest(id="a", kind=RequestKind.DEVICE, where="", reason="r")


@pytest.mark.parametrize(
    ("kind", "where", "fits"),
    [
        ("class", "class = a", True),
        ("class", "site = a or not class = b", True),
        ("class", "site = a", False),
        ("site", "site = a", True),
        ("site", "StationName = a", False),
        ("patients", "PatientID in @withdrawn", True),
        ("patients", "patient = a", True),
        ("patients", "StudyInstanceUID = 1.2", False),
        ("device", "class = a", True),
        ("samples", "class = a", True),
    ],
)
def test_kind_and_predicate_agree(kind: str, where: str, fits: bool) -> None:
    toml = f"id = 'a'\nkind = '{kind}'\nwhere = '{where}'\nreason = 'r'"
    if fits:
        assert ForgetRequest.from_toml(toml).kind == kind
    else:
        with pytest.raises(RequestError, match=f"kind '{kind}' expects a predicate over"):
            ForgetRequest.from_toml(toml)


def test_immutable() -> None:
    request = ForgetRequest.from_toml(TOML)
    with pytest.raises(ValidationError):
        request.reason = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        request.acceptance.held_out_drop = 1.0  # type: ignore[misc]


def _request(**changes: object) -> ForgetRequest:
    wanted = {"id": "a", "kind": "device", "where": "StationName = MR7", "reason": "coil fault"}
    return ForgetRequest.model_validate(wanted | changes)


@pytest.mark.parametrize(
    ("kind", "preset", "limit"),
    [("device", "samples", None), ("patients", "samples", None), ("class", "classes", 0.02), ("labels", "labels", 0.5)],
)
def test_the_kind_chooses_settings_and_what_may_remain(kind: str, preset: str, limit: float | None) -> None:
    request = _request(kind=kind, where="class = x and patient = 7")
    assert (request.preset, request.forget_limit) == (preset, limit)
    assert request.preset in PRESETS


def test_the_limit_of_wrong_labels_is_told_where_it_counts_or_was_set() -> None:
    """Requests of other kinds keep the text that was signed before there was one."""
    plain, of_labels, set_ = _request(), _request(kind="labels"), _request(acceptance={"label_agreement": 0.7})
    assert ["label_agreement" in one.to_json() for one in (plain, of_labels, set_)] == [False, True, True]
    assert all(ForgetRequest.from_json(one.to_json()) == one for one in (plain, of_labels, set_))


def test_one_request_joins_to_itself() -> None:
    assert joined([_request()]) == _request()


def test_joined_requests_match_what_any_of_them_matches() -> None:
    both = joined([_request(), _request(id="b", kind="patients", where="patient = 7 and not class = x", preference=1.0)])
    assert (both.id, both.kind, both.preference) == ("a-and-b", RequestKind.SAMPLES, 0.75)
    for station, patient, label, expected in (
        ("MR7", "1", "x", True),
        ("MR8", "7", "y", True),
        ("MR8", "7", "x", False),
        ("MR7", "7", "x", True),
    ):
        assert both.predicate.matches({"StationName": station, "patient": patient, "class": label}, {}) is expected
    assert both.reason == "a: coil fault; b: coil fault"


def test_the_strictest_rule_of_joined_requests_holds() -> None:
    strict = {"held_out_drop": 0.0, "retain_drop": 0.5}
    both = joined([_request(acceptance=strict), _request(id="b", acceptance={"worst_site_drop": 0.01})])
    assert (both.acceptance.held_out_drop, both.acceptance.retain_drop, both.acceptance.worst_site_drop) == (0.0, 0.01, 0.01)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], "no request"),
        ([_request(), _request()], "one id: a, a"),
        ([_request(), _request(id="b", kind="class", where="class = x")], "one after another"),
        ([_request(), _request(id="b", kind="labels")], "one after another"),
    ],
)
def test_requests_that_cannot_be_joined(others: list[ForgetRequest], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        joined(others)


def test_a_joined_id_is_an_id_of_its_own() -> None:
    both, other = (joined([_request(id="a" * 60), _request(id=second * 60)]) for second in "bc")
    assert ForgetRequest.from_json(both.to_json()) == both
    assert both.id != other.id


def test_too_long_a_joint_predicate_is_refused() -> None:
    many = f"patient in ({', '.join(str(10**9 + i) for i in range(6000))})"
    with pytest.raises(RequestError, match="at most 100000"):
        joined([_request(id=name, where=many) for name in ("a", "b")])
