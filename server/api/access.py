"""Who calls, and whether they may: by the certificate of the caller, which the sites' authority signed.

An invite may only join. A site that is let in may do the rest, for itself alone: no call names a site, the certificate does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from excise.common.api import PROTOCOL, PROTOCOL_KEY
from excise.server.buckets import Buckets
from excise.server.members import INVITE, SITE, serial_of
from excise.server.store import Store
from excise.server.store.tables import Site, SiteState

BURST, RATE = 40, 10.0
"""Calls that a caller may make at once, and each second: people and a watcher make few."""
STREAMS = 4
"""Streams that a site may have at once: it watches by one and fetches by another."""


class Refused(Exception):
    """A call that is refused: a gRPC status and a text that may travel."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass(frozen=True)
class Caller:
    """Who calls: role and name in the certificate, its serial number, and since when it is valid."""

    role: str
    name: str
    serial: str
    since: datetime

    @property
    def key(self) -> str:
        """By which its calls are counted: another certificate of that name, an invite say, does not use up its share."""
        return f"{self.role} {self.name} {self.serial}"


class Limits:
    """How often each caller may call, and how many streams it may have."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._calls = Buckets(BURST, RATE, clock)
        self._streams: Counter[str] = Counter()

    def count(self, name: str) -> None:
        """Count a call.

        Raises
        ------
        Refused : it is one too many
        """
        if not self._calls.take(name):
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"too many calls: at most {RATE:g} a second")

    def begin(self, name: str) -> None:
        """Count a stream that begins.

        Raises
        ------
        Refused : it is one too many
        """
        if self._streams[name] >= STREAMS:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"too many streams: at most {STREAMS} at once")
        self._streams[name] += 1

    def end(self, name: str) -> None:
        """Count a stream that ended."""
        self._streams[name] -= 1
        if not self._streams[name]:
            del self._streams[name]


def caller_of(context: grpc.aio.ServicerContext) -> Caller:
    """Who calls, once TLS has checked the certificate; and in which protocol.

    Raises
    ------
    Refused : the call is of another protocol
    """
    spoken = dict(context.invocation_metadata() or ()).get(PROTOCOL_KEY)
    if spoken != PROTOCOL:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"this coordinator speaks protocol {PROTOCOL}, the call is of protocol {spoken or 'none'}: both need a release of "
            "excise that fits",
        )
    (pem,) = context.auth_context()["x509_pem_cert"]
    certificate = x509.load_pem_x509_certificate(pem)
    role, name = (
        str(attribute.value)
        for oid in (NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME)
        for attribute in certificate.subject.get_attributes_for_oid(oid)
    )
    return Caller(role, name, serial_of(certificate), certificate.not_valid_before_utc)


def site_of(store: Store, caller: Caller) -> str:
    """The site that calls, when it is let in, and its certificate is not of a time before it joined.

    Raises
    ------
    Refused : it is not
    """
    with store.reading() as session:
        site = None if caller.role != SITE else session.get(Site, caller.name)
    if site is None or not site.certificate:
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, "this certificate is of no site: an invite may only join")
    if caller.since < x509.load_pem_x509_certificate(site.certificate.encode()).not_valid_before_utc:
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, "this certificate counts no more: the site joined anew since")
    if site.state != SiteState.ADMITTED:
        raise Refused(
            grpc.StatusCode.PERMISSION_DENIED,
            f"'{site.name}' is not let in yet: tell the coordinator by telephone the fingerprint that excise site doctor shows"
            if site.state == SiteState.ASKING
            else f"'{site.name}' is let in no more",
        )
    return site.name


def invited_of(caller: Caller) -> str:
    """The site that an invite is of, when an invite calls.

    Raises
    ------
    Refused : it is the certificate of a site
    """
    if caller.role != INVITE:
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, "joining wants an invite's certificate")
    return caller.name
