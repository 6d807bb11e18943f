"""Evidence as a site looks at it before its people sign: is what it says of this site what this site knows?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from excise.client.requests import Requests
from excise.common.decision import Decision
from excise.common.evidence import FORMAT, Finding
from excise.common.request import ForgetRequest
from excise.common.signing import public_hex, read_key


def check(document: dict[str, Any], name: str, kept: Requests, coordinator_key: str) -> list[Finding]:
    """Compare a document of evidence with what the site `name` knows.

    Parameters
    ----------
    coordinator_key : as the site knows it since it joined
    """
    try:
        return list(_findings(document, name, kept, coordinator_key))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [Finding(False, f"the evidence is not as it should be: {type(error).__name__}")]


def _findings(document: dict[str, Any], name: str, kept: Requests, coordinator_key: str) -> Iterator[Finding]:
    yield _same("format", document["format"], FORMAT)
    yield _same("the coordinator's key", document["coordinator"]["key"], coordinator_key)
    yield _same("this site's key", document["sites"][name]["key"], public_hex(read_key(kept.key)))
    change = document["description_of_modification"]
    requests = [ForgetRequest.from_json(json.dumps(one["request"])) for one in change["requests"]]
    told = {one["request"]: one for one in document["modification_protocol"]["approvals"] if one["site"] == name}
    for request in requests:
        yield _same(f"request {request.id}", kept.get(request.id), request)
        own = kept.signed(request)
        same = own is not None and request.id in told and Decision.from_text(told[request.id]["decision"]) == own[0]
        yield Finding(same, f"approval of {request.id}: {'yours' if same else 'not what was decided here'}")
    commitments = {kept.commitment(request) for request in kept if kept.commitment(request)}
    ours = change["forget_set_commitments"].get(name, "")
    yield Finding(ours in commitments, f"forget set: {'what this site committed to' if ours in commitments else 'another'}")


def _same(what: str, found: object, expected: object) -> Finding:
    return Finding(found == expected, f"{what}: {'as known here' if found == expected else 'another than the one known here'}")
