"""The evidence of runs with the signatures under it, in the store and as files in the runs' folders (`common/evidence.py`)."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select

from excise.common.errors import RequestError
from excise.common.evidence import COORDINATOR
from excise.common.files import write_atomically
from excise.common.signing import is_signed
from excise.server.config import ServerConfig
from excise.server.evidence_page import render
from excise.server.registry import run_of
from excise.server.store import Store
from excise.server.store.tables import EvidenceSignature, Run, Statement, now

PACK, PAGE = "evidence.json", "evidence.html"
"""The evidence and its page, in the run's folder."""


def sign_as_site(store: Store, config: ServerConfig, site: str, run: str, evidence: str, signature: str) -> None:
    """Take in a site's signature of the evidence of a run that it took part in.

    Raises
    ------
    RequestError : it took no part, the evidence is another one, or the site's key did not sign
    """
    with store.change() as change:
        row = change.session.get(Run, run)
        if row is None or not row.document or site not in json.loads(row.document)["sites"]:
            raise RequestError(f"no evidence of '{run}' concerns '{site}'")
        if evidence != row.digest:
            raise RequestError(f"the evidence of '{run}' has the digest {row.digest}, not {evidence}: fetch it again")
        key = json.loads(row.document)["sites"][site]["key"]
        if not is_signed(row.document.encode(), signature, key):
            raise RequestError(f"the evidence of '{run}' is not signed with the key of '{site}'")
        if change.session.get(EvidenceSignature, (run, site)) is None:
            change.session.add(EvidenceSignature(run=run, site=site, key=key, signature=signature, at=now()))
            change.log("evidence signed", run=run, site=site, digest=evidence)
    write_pack(store, config, run)


def unsigned(store: Store, run: str) -> tuple[str, ...]:
    """Sites that took part and did not sign the evidence yet."""
    document = run_of(store, run).document
    with store.reading() as session:
        signed = set(session.scalars(select(EvidenceSignature.site).where(EvidenceSignature.run == run)))
    return tuple(sorted(set(json.loads(document)["sites"]) - signed)) if document else ()


def pack_of(store: Store, run: str) -> dict[str, Any]:
    """The evidence of a run with all its signatures and statements, as in ``evidence.json``.

    Raises
    ------
    RequestError : there is none
    """
    made = run_of(store, run)
    if not made.document:
        raise RequestError(f"no evidence of '{run}' yet")
    with store.reading() as session:
        signed = session.scalars(
            select(EvidenceSignature).where(EvidenceSignature.run == run).order_by(EvidenceSignature.site)
        )
        by_sites = [{"signer": one.site, "key": one.key, "signature": one.signature} for one in signed]
        stated = session.scalars(select(Statement).where(Statement.run == run).order_by(Statement.id))
        statements = [{"text": one.text, "key": one.key, "signature": one.signature} for one in stated]
    ours = {"signer": COORDINATOR, "key": made.key, "signature": made.signature}
    return {"document": json.loads(made.document), "signatures": [ours, *by_sites], "statements": statements}


def write_pack(store: Store, config: ServerConfig, run: str) -> None:
    """Write the evidence and its page into the run's folder, as the store has them now.

    Raises
    ------
    StorageError : they cannot be written
    """
    pack = pack_of(store, run)
    write_atomically(config.runs / run / PACK, json.dumps(pack, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    write_atomically(config.runs / run / PAGE, render(pack))
