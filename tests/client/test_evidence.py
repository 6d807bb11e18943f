"""A site signs evidence when it is of what this site knows, in the one form that is signed; each forgery is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from excise.client.config import read_site_config
from excise.client.coordinator import Coordinator
from excise.client.evidence import check, read
from excise.client.requests import Requests
from excise.common.canonical import canonical, digest_of
from excise.common.decision import Standing
from excise.common.errors import DataError
from excise.common.evidence import FORMAT
from excise.common.request import ForgetRequest, joined
from excise.common.signing import is_signed, make_key, public_hex, read_key
from tests.coordinators import DEVICE, OTHER, Network, listening, network

KEY = "ab" * 32
"""The coordinator's, as the site knows it."""
Document = dict[str, Any]


@pytest.fixture
def kept(tmp_path: Path) -> Requests:
    """A site that approved two requests, committed to each apart and to both joined, and to one that it also approved."""
    make_key(tmp_path / "keys" / "signing.pem")
    kept = Requests(tmp_path)
    settle(kept)
    return kept


def settle(kept: Requests) -> None:
    both = joined([DEVICE, OTHER])
    kept.arrive(both, [DEVICE, OTHER])
    for request in (DEVICE, OTHER):
        kept.decide(request, Standing.APPROVED, "Dr. Noether", "")
    for request, told in ((DEVICE, "11"), (OTHER, "22"), (both, "33")):
        kept.commit(request, told * 32)


def document_of(kept: Requests, commitment: str, *requests: ForgetRequest, key: str = KEY) -> Document:
    """Evidence of these requests as the coordinator makes it, with another site in it."""
    approvals = []
    for request in requests:
        signed = kept.signed(request)
        assert signed
        told = {"request": request.id, "decision": signed[0].text().decode(), "signature": signed[1]}
        approvals += [told | {"site": "a"}, told | {"site": "b", "signature": "00" * 64}]
    return {
        "format": FORMAT,
        "coordinator": {"name": "network", "key": key},
        "sites": {"a": {"key": public_hex(read_key(kept.key))}, "b": {"key": "cd" * 32}},
        "description_of_modification": {
            "requests": [{"request": json.loads(one.to_json()), "digest": one.digest} for one in requests],
            "forget_set_commitments": {"a": commitment * 32, "b": "ef" * 32},
        },
        "modification_protocol": {"approvals": approvals},
        "impact_assessment": {"accepted": True, "note": "Ä"},
    }


def faults(document: Document, kept: Requests) -> list[str]:
    return [one.told for one in check(document, "a", kept, KEY) if not one.good]


def test_evidence_of_what_this_site_knows_is_good(kept: Requests) -> None:
    assert faults(document_of(kept, "11", DEVICE), kept) == []
    assert faults(document_of(kept, "22", OTHER), kept) == []
    assert faults(document_of(kept, "33", DEVICE, OTHER), kept) == []


@pytest.mark.parametrize("commitment", ["22", "33", "44", ""])
def test_a_commitment_of_other_requests_is_found(kept: Requests, commitment: str) -> None:
    assert faults(document_of(kept, commitment, DEVICE), kept) == ["forget set: not what this site committed to"]


@pytest.mark.parametrize("commitment", ["11", "22", "44"])
def test_a_commitment_of_a_part_is_found_where_requests_were_joined(kept: Requests, commitment: str) -> None:
    assert faults(document_of(kept, commitment, DEVICE, OTHER), kept) == ["forget set: not what this site committed to"]


def test_without_a_commitment_here_none_is_good(tmp_path: Path) -> None:
    make_key(tmp_path / "keys" / "signing.pem")
    kept = Requests(tmp_path)
    kept.arrive(DEVICE)
    kept.decide(DEVICE, Standing.APPROVED, "N", "")
    document = document_of(kept, "", DEVICE)
    del document["description_of_modification"]["forget_set_commitments"]["a"]
    assert faults(document, kept) == ["forget set: not what this site committed to"]


def change(document: Document) -> Document:
    return dict(document["description_of_modification"])


def approvals(document: Document) -> list[Document]:
    return list(document["modification_protocol"]["approvals"])


FORGERIES: dict[str, Callable[[Document], object]] = {
    "the format": lambda one: one.update(format="excise evidence 2"),
    "the coordinator's key": lambda one: one["coordinator"].update(key="cd" * 32),
    "this site's key": lambda one: one["sites"]["a"].update(key="cd" * 32),
    "this site left out": lambda one: one["sites"].pop("a"),
    "the reason of a request": lambda one: change(one)["requests"][0]["request"].update(reason="another"),
    "the digest of a request": lambda one: change(one)["requests"][0].update(digest="cd" * 32),
    "a request that this release cannot read": lambda one: change(one)["requests"][0]["request"].update(where="nonsense"),
    "a request that never came": lambda one: change(one)["requests"][0]["request"].update(id="another"),
    "a request twice": lambda one: change(one)["requests"].append(change(one)["requests"][0]),
    "no request": lambda one: change(one)["requests"].clear(),
    "an approval left out": lambda one: one["modification_protocol"]["approvals"].pop(0),
    "an approval twice": lambda one: one["modification_protocol"]["approvals"].append(approvals(one)[0]),
    "another's approval": lambda one: approvals(one)[0].update(
        decision=approvals(one)[0]["decision"].replace("Noether", "Eve")
    ),
    "a denial": lambda one: approvals(one)[0].update(decision=approvals(one)[0]["decision"].replace("approved", "denied")),
    "no decision": lambda one: approvals(one)[0].update(decision="[]"),
    "another signature": lambda one: approvals(one)[0].update(signature="00" * 64),
    "a field gone": lambda one: one.pop("modification_protocol"),
    "a list for an object": lambda one: one.update(sites=[]),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_whatever_is_forged_of_this_site_is_found(kept: Requests, what: str) -> None:
    document = document_of(kept, "11", DEVICE)
    forged = copy.deepcopy(document)
    FORGERIES[what](forged)
    assert forged != document
    assert faults(forged, kept)


NOT_CANONICAL: dict[str, Callable[[str], str]] = {
    "spaces": lambda text: json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False),
    "escapes": lambda text: json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")),
    "another order": lambda text: json.dumps(
        dict(reversed(json.loads(text).items())), separators=(",", ":"), ensure_ascii=False
    ),
    "a key twice": lambda text: text.replace('{"accepted":true', '{"accepted":false,"accepted":true'),
    "a number that is not finite": lambda text: text.replace("true", "NaN"),
    "something behind": lambda text: f"{text} ",
    "no JSON": lambda text: text[:-1],
    "no object": lambda text: "[]",
    "too deep": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("what", NOT_CANONICAL)
def test_only_the_one_form_of_a_document_is_read(kept: Requests, what: str) -> None:
    document = document_of(kept, "11", DEVICE)
    text = canonical(document)
    assert read(text, "mr7") == document
    changed = NOT_CANONICAL[what](text)
    assert changed != text
    with pytest.raises(DataError, match="not in its one form"):
        read(changed, "mr7")


def test_evidence_of_another_request_is_not_read(kept: Requests) -> None:
    for document in (document_of(kept, "22", OTHER), {"format": FORMAT}, {"description_of_modification": []}):
        with pytest.raises(DataError, match="is not of 'mr7'"):
            read(canonical(document), "mr7")


# ---- excise site sign -----------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path) as one, listening(one):
        one.join("a")
        settle(Requests(one.sites["a"].parent))
        yield one


def test_what_is_signed_is_what_was_checked(
    made: Network, tmp_path: Path, excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, sent = made.sites["a"], []
    kept, settings = Requests(site.parent), read_site_config(site).coordinator
    assert settings is not None
    text = canonical(document_of(kept, "11", DEVICE, key=settings.key))
    monkeypatch.setattr(Coordinator, "sign_evidence", lambda _, *given: sent.append(given))
    command = ("site", "sign", "mr7", "--by", "Dr. Noether", "--to", tmp_path / "kept.json", "--site", site)
    for told, reason in ((f"{text} ", "not in its one form"), (text.replace("11" * 32, "22" * 32), "nothing was signed")):
        monkeypatch.setattr(Coordinator, "evidence", lambda *_, told=told: told)
        code, _, err = excise(*command)
        assert (code, reason in err, sent) == (2, True, []), err
        assert not (tmp_path / "kept.json").exists()
    monkeypatch.setattr(Coordinator, "evidence", lambda *_: text)
    assert excise(*command, "--dry-run")[0] == 0
    assert sent == []
    code, out, err = excise(*command)
    assert (code, "✗" in out) == (0, False), err
    ((request, digest, signature),) = sent
    assert (request, digest) == ("mr7", digest_of(text))
    assert is_signed(text.encode(), signature, public_hex(read_key(kept.key)))
    assert (tmp_path / "kept.json").read_text() == text
