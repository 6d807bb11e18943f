"""Forget requests at a site: those that came, and what its people decided, signed with the site's key.

    requests/rounds.json            how many unlearning rounds of each were answered, by its digest
             updates.json           how many updates left, of all of them (`accountant.py`)
    requests/<id>/request.json      the request, as it came
                  decision.json     approved or denied, by whom, when, why, signed
                  parts.json        of a request that joins others: the digests of those
                  coordinator.json  where it stands at the coordinator
                  commitment        to the images that it means here, as it was told

A decision is of one exact request: its digest is what is signed. It stands beside site.toml, not in the state, which may be
deleted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from excise.client.database import exclusively
from excise.client.forgotten import EVENT as FORGOTTEN
from excise.common.chain import append
from excise.common.decision import Decision, Standing
from excise.common.errors import RequestError
from excise.common.files import write_atomically
from excise.common.request import ForgetRequest, joined
from excise.common.signing import is_signed, public_hex, read_key, sign

CANDIDATE, ROLLED_BACK = "candidate", "rolled back"
"""The coordinator's words for a request whose evidence is signed, and for one whose model is in use no more."""


def log_of(folder: Path) -> Path:
    """The site's own log of what was asked and decided (`excise.common.chain`)."""
    return folder / "audit.jsonl"


class Requests:
    """The requests of one site.

    Parameters
    ----------
    folder : of the site, where site.toml is
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.key, self.log = folder / "requests", folder / "keys" / "signing.pem", log_of(folder)

    def arrive(self, request: ForgetRequest, parts: Sequence[ForgetRequest] = ()) -> bool:
        """Keep a request that came; whether it is new. Of a joined one its parts are kept too.

        Raises
        ------
        RequestError : another request has this id, or it is not what its parts make
        StorageError : it cannot be kept
        """
        if parts and (len(parts) < 2 or joined(parts) != request):
            raise RequestError(f"request '{request.id}' is not what its {len(parts)} parts make together")
        for part in parts:
            self.arrive(part)
        known = self.check_id(request)
        if known is None:
            append(self.log, "request arrived", request=request.id, digest=request.digest)
        if parts:
            digests = [part.digest for part in parts]
            write_atomically(self.folder / request.id / "parts.json", json.dumps({"digest": request.digest, "parts": digests}))
        if known is None:
            write_atomically(self.folder / request.id / "request.json", request.to_json() + "\n")
        return known is None

    def check_id(self, request: ForgetRequest) -> ForgetRequest | None:
        """The request as it came before; None when it is new.

        Raises
        ------
        RequestError : another request has this id
        """
        known = self.get(request.id)
        if known is not None and known != request:
            raise RequestError(f"another request of the id '{request.id}' came before; one id is carried out once")
        return known

    def get(self, request_id: str) -> ForgetRequest | None:
        """The request of this id.

        Raises
        ------
        RequestError : its file was damaged
        """
        path = self.folder / request_id / "request.json"
        return ForgetRequest.from_json(path.read_text()) if path.exists() else None

    def __iter__(self) -> Iterator[ForgetRequest]:
        for path in sorted(self.folder.glob("*/request.json")):
            yield ForgetRequest.from_json(path.read_text())

    def decide(self, request: ForgetRequest, standing: Standing, by: str, note: str) -> Decision:
        """Sign and keep a decision; a later one takes the place of an earlier.

        Raises
        ------
        ConfigError : the site has no signing key
        StorageError : it cannot be kept
        """
        key = read_key(self.key)
        at, before = datetime.now(UTC).isoformat(timespec="milliseconds"), self.decision(request)
        if before is not None and at <= before.at:  # the clock was set back: the coordinator keeps to the latest decision
            at = (datetime.fromisoformat(before.at) + timedelta(milliseconds=1)).isoformat(timespec="milliseconds")
        decision = Decision(request.digest, standing, by, note, at)
        signed = asdict(decision) | {"key": public_hex(key), "signature": sign(key, decision.text())}
        # The log first, here and wherever it is written: what is done is in it, whenever the process is killed.
        append(self.log, f"request {standing}", request=request.id, digest=request.digest, by=by, note=note)
        write_atomically(self.folder / request.id / "decision.json", json.dumps(signed, indent=2) + "\n")
        return decision

    def decision(self, request: ForgetRequest) -> Decision | None:
        """What was decided of exactly this request, when the site's own key signed it."""
        path = self.folder / request.id / "decision.json"
        if not path.exists():
            return None
        try:
            signed = json.loads(path.read_text())
            signature = str(signed.pop("signature"))
            signed.pop("key")
            decision = Decision(**signed | {"standing": Standing(signed["standing"])})
        except (ValueError, KeyError, TypeError):
            return None
        ours = is_signed(decision.text(), signature, public_hex(read_key(self.key)))
        return decision if ours and decision.digest == request.digest else None

    def signed(self, request: ForgetRequest) -> tuple[Decision, str] | None:
        """What was decided of exactly this request, with the site's signature of it; None before."""
        decision = self.decision(request)
        if decision is None:
            return None
        return decision, str(json.loads((self.folder / request.id / "decision.json").read_text())["signature"])

    def note(self, request: ForgetRequest, state: str, since: str, waits_for: Sequence[str]) -> None:
        """Keep what the coordinator says of a request: where it stands, since when, and for whom it waits.

        Raises
        ------
        StorageError : it cannot be kept
        """
        told = {"digest": request.digest, "state": state, "since": since, "waits_for": list(waits_for)}
        write_atomically(self.folder / request.id / "coordinator.json", json.dumps(told, indent=2) + "\n")

    def noted(self, request: ForgetRequest) -> dict[str, Any]:
        """What the coordinator said of exactly this request last: state, since, waits_for; empty before it did."""
        path = self.folder / request.id / "coordinator.json"
        told = json.loads(path.read_text()) if path.exists() else {}
        return dict(told) if told.get("digest") == request.digest else {}

    def signed_evidence(self, request: ForgetRequest, name: str) -> None:
        """The site, `name`, is awaited no more; the coordinator says so itself only when it is asked the next time.

        Raises
        ------
        StorageError : it cannot be kept
        """
        noted = self.noted(request)
        if noted and name in noted["waits_for"]:
            rest = [site for site in noted["waits_for"] if site != name]
            self.note(request, noted["state"], noted["since"], rest or ["the coordinator"])

    def to_sign(self, name: str) -> list[str]:
        """Ids of the requests whose evidence waits for the signature of this site, `name`, as the coordinator told last."""
        told = ((request.id, self.noted(request)) for request in self)
        return [id_ for id_, noted in told if noted and noted["state"] == CANDIDATE and name in noted["waits_for"]]

    def forgotten(self) -> list[ForgetRequest]:
        """Requests whose images were left out here for good, by the site's log."""
        digests = set()
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            with suppress(ValueError, KeyError, TypeError):  # lines that were altered are for excise site audit verify
                event = json.loads(line)
                if event["event"] == FORGOTTEN:
                    digests.add(event["digest"])
        return [request for request in self if request.digest in digests]

    def commit(self, request: ForgetRequest, commitment: str) -> None:
        """Keep the commitment to the forget set that was told of a request, to compare evidence with it.

        Raises
        ------
        StorageError : it cannot be kept
        """
        write_atomically(self.folder / request.id / "commitment", f"{request.digest} {commitment}\n")

    def commitment(self, request: ForgetRequest) -> str:
        """The commitment that was told of exactly this request; empty when none was."""
        path = self.folder / request.id / "commitment"
        digest, _, told = path.read_text().strip().partition(" ") if path.exists() else ("", "", "")
        return told if digest == request.digest else ""

    def count_round(self, request: ForgetRequest) -> int:
        """Count one more round of a request and of those that it joins; returns the largest of their counts with it.

        Raises
        ------
        StorageError : it cannot be counted
        """
        path, digests = self.folder / "rounds.json", [request.digest, *self._parts(request)]
        with exclusively(path):
            counts = json.loads(path.read_text()) if path.exists() else {}
            counts |= {digest: counts.get(digest, 0) + 1 for digest in digests}
            write_atomically(path, json.dumps(counts))
        return max(int(counts[digest]) for digest in digests)

    def _parts(self, request: ForgetRequest) -> list[str]:
        """Digests of the requests that it joins; none when it joins none."""
        path = self.folder / request.id / "parts.json"
        told = json.loads(path.read_text()) if path.exists() else {}
        return list(told["parts"]) if told.get("digest") == request.digest else []

    def standing(self, request: ForgetRequest) -> Standing:
        """Denied when a part is; else as it was decided itself, or as all its parts were; else pending."""
        own, parts = self.decision(request), self._parts(request)
        if not parts:
            return own.standing if own else Standing.PENDING
        of_parts = [self.standing(part) for part in self if part.digest in parts and part != request]
        if Standing.DENIED in of_parts:
            return Standing.DENIED
        if own:
            return own.standing
        whole = len(of_parts) == len(parts) and set(of_parts) == {Standing.APPROVED}
        return Standing.APPROVED if whole else Standing.PENDING
