"""Evidence of an unlearning: one file that a third party can check with nothing but public keys.

    {"document": {…}, "signatures": [{"signer", "key", "signature"}, …], "statements": [{"text", "key", "signature"}, …]}

*Signatures* are of the document's canonical text (`common/canonical.py`), by the coordinator and by each site that took part.
*Statements* are what the coordinator signed afterwards, each naming the document's digest: verified, promoted, rolled back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.common.canonical import canonical, digest_of
from excise.common.decision import Decision, Standing
from excise.common.errors import DataError, ExciseError
from excise.common.request import ForgetRequest
from excise.common.signing import is_signed

FORMAT = "excise evidence 1"
COORDINATOR = "coordinator"
LARGEST = 64 << 20
"""Most bytes of a file of evidence: a thousand sites and hundreds of rounds have a tenth of that."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes
    ----------
    good : whether it is as it should be; None where only the reader can know
    told : the same in words
    awaited : the site whose signature is not there yet; empty for all else
    """

    good: bool | None
    told: str
    awaited: str = ""

    @property
    def mark(self) -> str:
        """For people."""
        return {True: "✓", False: "✗", None: "–"}[self.good]


def read_evidence(path: Path) -> dict[str, Any]:
    """Read a file of evidence; what it says is not checked yet.

    Raises
    ------
    DataError : it cannot be read, or is no evidence
    """
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} has more than {LARGEST >> 20} MiB: that is no evidence of excise")
        pack = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"no evidence at {path}: {error}") from None
    if not isinstance(pack, dict) or not isinstance(pack.get("document"), dict):
        raise DataError(f"{path} is no evidence of excise: it has no document")
    if pack["document"].get("format") != FORMAT:
        raise DataError(f"{path} has the format {pack['document'].get('format')!r}; this release reads '{FORMAT}'")
    return pack


def check(pack: Mapping[str, Any], keys: Mapping[str, str] | None = None) -> list[Finding]:
    """Check every signature, digest and approval.

    Parameters
    ----------
    keys : public keys that are known by another way, by signer (``coordinator`` or the name of a site); without them only
        whether the evidence is whole can be told, not who signed it
    """
    try:
        return list(_findings(pack, keys or {}))
    except (KeyError, TypeError, ValueError, AttributeError, ExciseError) as error:
        return [Finding(False, f"the evidence is not as it should be: {type(error).__name__}: {error}")]


def signers(pack: Mapping[str, Any]) -> list[str]:
    """Names under which the evidence has keys: the coordinator's, and the sites' that took part; of a damaged one fewer."""
    sites = pack["document"].get("sites")
    return [COORDINATOR, *sorted(sites)] if isinstance(sites, dict) else [COORDINATOR]


def _findings(pack: Mapping[str, Any], known: Mapping[str, str]) -> Iterator[Finding]:
    document = pack["document"]
    text, signed = canonical(document), {one["signer"]: one for one in pack["signatures"]}
    coordinator = document["coordinator"]["key"]
    expected = {COORDINATOR: coordinator, **{site: told["key"] for site, told in document["sites"].items()}}
    for signer, key in expected.items():
        if signer not in signed:
            # The coordinator signs when it makes the evidence: without its signature the file was altered.
            yield Finding(False, f"{signer}: no signature", "" if signer == COORDINATOR else signer)
            continue
        ours = signed[signer]["key"] == key and is_signed(text.encode(), signed[signer]["signature"], key)
        yield Finding(ours, f"{signer}: {'signed' if ours else 'the signature is not of this document'}, key {key[:16]}…")
    for signer in sorted(signed.keys() - expected.keys()):
        yield Finding(False, f"{signer}: signed, but took no part")
    for name, key in sorted(known.items()):
        same = expected.get(name) == key
        yield Finding(same, f"{name}: the key is {'the one that you know' if same else 'another than the one that you know'}")
    for name in sorted(expected.keys() - known.keys()):
        yield Finding(None, f"{name}: whose the key is only you can know; give it with --key {name}=HEX")
    for site in document["took_no_part"]:
        yield Finding(None, f"{site}: was asked and took no part; what the request means there was not forgotten in this run")
    yield from _approvals(document)
    yield from _statements(pack, digest_of(text), coordinator)


def _approvals(document: Mapping[str, Any]) -> Iterator[Finding]:
    protocol = document["modification_protocol"]
    for told in document["description_of_modification"]["requests"]:
        request = ForgetRequest.from_json(json.dumps(told["request"]))
        same = request.digest == told["digest"]
        yield Finding(same, f"request {request.id}: {'its digest is right' if same else 'it was altered'}")
        approved = {one["site"]: one for one in protocol["approvals"] if one["request"] == request.id}
        for site, own in sorted(document["sites"].items()):
            if site not in approved:
                yield Finding(False, f"request {request.id}: no approval of {site}")
                continue
            approval = approved[site]
            decision = Decision.from_text(approval["decision"])
            good = (
                decision.digest == request.digest
                and decision.standing is Standing.APPROVED
                and approval["key"] == own["key"]
                and is_signed(decision.text(), approval["signature"], own["key"])
            )
            by = f"by {decision.by} at {decision.at}" if good else "is not signed by its key, or is of another request"
            yield Finding(good, f"request {request.id}: approval of {site} {by}")
        for one in protocol["withdrawn"]:
            if one["request"] == request.id:
                yield Finding(None, f"request {request.id}: {one['site']} decided otherwise after the run had begun")


def _statements(pack: Mapping[str, Any], digest: str, key: str) -> Iterator[Finding]:
    before = ""
    for one in pack["statements"]:
        told = json.loads(one["text"])
        good = (
            told["evidence"] == digest
            and told["before"] == before
            and one["key"] == key
            and is_signed(one["text"].encode(), one["signature"], key)
        )
        before = digest_of(one["text"])
        by = f"{told['happened']}, by {told['by']} at {told['at']}: {told['why']}"
        yield Finding(
            good,
            f"statement: {by}"
            if good
            else f"statement that is not the coordinator's, of other evidence, or after one that is missing: {by}",
        )
