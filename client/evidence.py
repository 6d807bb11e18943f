"""Evidence as a site looks at it before its people sign: is what it says of this site what this site knows?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from excise.client.requests import Requests
from excise.common.canonical import canonical
from excise.common.decision import Decision
from excise.common.errors import DataError, RequestError
from excise.common.evidence import FORMAT, Finding
from excise.common.request import ForgetRequest, joined
from excise.common.signing import public_hex, read_key


def read(text: str, request: str) -> dict[str, Any]:
    """The document that the coordinator hands out to be signed for a request.

    Raises
    ------
    DataError : it is not in the one form that is signed, or not of this request
    """
    document = None
    with suppress(ValueError, RecursionError):
        told = json.loads(text)
        document = told if canonical(told) == text else None
    if not isinstance(document, dict):
        raise DataError(
            "the evidence is not in its one form (canonical JSON): others could read something else in it. Nothing was "
            "signed; ask the coordinator"
        )
    try:
        ids = [one["request"]["id"] for one in document["description_of_modification"]["requests"]]
    except (KeyError, TypeError):
        ids = []
    if request not in ids:
        raise DataError(f"the evidence that came is not of '{request}': nothing was signed. Ask the coordinator")
    return document


def check(document: dict[str, Any], name: str, kept: Requests, coordinator_key: str) -> list[Finding]:
    """Compare a document of evidence with what the site `name` knows.

    Parameters
    ----------
    coordinator_key : as the site knows it since it joined
    """
    try:
        return list(_findings(document, name, kept, coordinator_key))
    except (KeyError, TypeError, ValueError, AttributeError, RequestError) as error:
        return [Finding(False, f"the evidence is not as it should be: {type(error).__name__}")]


def _findings(document: dict[str, Any], name: str, kept: Requests, coordinator_key: str) -> Iterator[Finding]:
    yield _same("format", document["format"], FORMAT)
    yield _same("the coordinator's key", document["coordinator"]["key"], coordinator_key)
    yield _same("this site's key", document["sites"][name]["key"], public_hex(read_key(kept.key)))
    change = document["description_of_modification"]
    requests = [ForgetRequest.from_json(json.dumps(one["request"])) for one in change["requests"]]
    approvals = [one for one in document["modification_protocol"]["approvals"] if one["site"] == name]
    for request, told in zip(requests, change["requests"], strict=True):
        yield _same(f"request {request.id}", (kept.get(request.id), told["digest"]), (request, request.digest))
        decided, here = kept.signed(request), [one for one in approvals if one["request"] == request.id]
        same = decided is not None and [(Decision.from_text(one["decision"]), one["signature"]) for one in here] == [decided]
        yield Finding(same, f"approval of {request.id}: {'yours' if same else 'not what was decided here'}")
    own = kept.commitment(joined(requests))
    same = bool(own) and change["forget_set_commitments"].get(name) == own
    yield Finding(same, f"forget set: {'what this site committed to' if same else 'not what this site committed to'}")


def _same(what: str, found: object, expected: object) -> Finding:
    return Finding(found == expected, f"{what}: {'as known here' if found == expected else 'another than the one known here'}")
