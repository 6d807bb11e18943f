"""The coordinator's own service, as a site calls it: requests, decisions, evidence, models. The only gRPC on this side.

Every connection goes out from the site. What is sent: requests that its people drafted, their decisions with names and notes,
signatures, and which model it runs; nothing of an image, and of a patient only what those people wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from excise import __version__
from excise.client.config import CoordinatorSettings
from excise.common.api import LARGEST, PROTOCOL, PROTOCOL_KEY
from excise.common.api import coordinator_pb2 as pb
from excise.common.api.coordinator_pb2_grpc import CoordinatorStub
from excise.common.decision import Decision
from excise.common.errors import ConfigError, ExciseError, MessageError
from excise.common.identity import SiteKeys
from excise.common.request import ForgetRequest
from excise.common.signing import is_signed

IDENTITY = Path("keys", "api.pem")
"""Private key and certificate with which the site shows at the service who it is; relative to site.toml."""
SECONDS = 30
"""A call may take so long: each is small."""
IDLE = ("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000), ("grpc.keepalive_permit_without_calls", 1)
"""A stream that waits finds out in half a minute that the other side is gone."""


class CoordinatorRefused(ExciseError):
    """The coordinator said no; the text is its own.

    Attributes
    ----------
    code : gRPC's word for why, in small letters
    """

    exit_code = 2

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class CoordinatorSilent(ConfigError):
    """The coordinator does not answer, or is not the one that this site trusts."""


@dataclass(frozen=True)
class Told:
    """A request as the coordinator tells it.

    Attributes
    ----------
    document : the request as it came, which a later release may have written
    standing : what the coordinator knows of this site's decision; empty when this site is not asked
    """

    document: str
    state: str
    since: str
    waits_for: tuple[str, ...]
    standing: str

    @property
    def request(self) -> ForgetRequest:
        """The request, read anew each time.

        Raises
        ------
        RequestError : this release cannot read it
        """
        return ForgetRequest.from_json(self.document)


@dataclass(frozen=True)
class PromotedModel:
    """A model as the coordinator lists it; its manifest is signed with the key that the site knows since it joined."""

    version: int
    manifest: dict[str, Any]
    size: int
    current: bool


class Coordinator:
    """A connection. Every method raises `CoordinatorRefused`, or `CoordinatorSilent` when nobody answers."""

    def __init__(self, channel: grpc.Channel, address: str) -> None:
        self._stub, self._address = CoordinatorStub(channel), address

    def join(self, keys: SiteKeys, signature: str) -> tuple[str, str]:
        """Hand in the site's keys; returns its certificate (PEM) and the coordinator's signing key (hexadecimal)."""
        message = pb.Keys(node=keys.node, signing=keys.signing, request=keys.request, signature=signature)
        told = self._call(self._stub.Join, message)
        return told.certificate, told.coordinator

    def renew(self, request: str) -> str:
        """A new certificate (PEM) for a signing request."""
        return str(self._call(self._stub.Renew, pb.Renewal(request=request)).certificate)

    def submit(self, request: ForgetRequest) -> Told:
        """Draft a request for every site."""
        return _told(self._call(self._stub.Submit, pb.Document(text=request.to_json())))

    def decide(self, request: str, decision: Decision, signature: str) -> Told:
        """Tell what this site's people decided."""
        message = pb.Decision(request=request, text=decision.text().decode(), signature=signature)
        return _told(self._call(self._stub.Decide, message))

    def watch(self) -> Iterator[Told]:
        """Every request that concerns this site, then each again when it changes; ends only with an error."""
        with self._errors():
            for one in self._stub.Watch(pb.Nothing(), metadata=METADATA):
                yield _told(one)

    def evidence(self, request: str) -> str:
        """The document that the sites sign, canonical JSON."""
        return str(self._call(self._stub.GetEvidence, pb.RequestName(request=request)).document)

    def sign_evidence(self, request: str, digest: str, signature: str) -> None:
        """Hand in this site's signature of it."""
        self._call(self._stub.SignEvidence, pb.Signature(request=request, digest=digest, signature=signature))

    def models(self, coordinator_key: str) -> list[PromotedModel]:
        """Every promoted model, the latest first.

        Raises
        ------
        MessageError : a manifest is not signed with the coordinator's key, or is not of the model that it comes with
        """
        found = []
        for one in self._call(self._stub.ListModels, pb.Nothing()).models:
            if not is_signed(one.manifest.encode(), one.signature, coordinator_key):
                raise MessageError(
                    f"the manifest of model {one.version} is not signed with the key of the coordinator that this site "
                    "joined: nothing was fetched. Ask the coordinator by telephone"
                )
            found.append(PromotedModel(one.version, _manifest(one), one.size, one.current))
        return found

    def fetch(self, version: int, offset: int) -> Iterator[tuple[int, bytes]]:
        """The bytes of a model from an offset on, as (offset, bytes)."""
        with self._errors():
            for chunk in self._stub.FetchModel(pb.Fetch(version=version, offset=offset), metadata=METADATA):
                yield chunk.offset, chunk.data

    def report(self, version: int | None) -> None:
        """Tell which model this site runs, and its release of excise."""
        self._call(self._stub.Report, pb.InUse(version=version or 0, release=__version__))

    def _call(self, method: Any, message: Any) -> Any:
        with self._errors():
            return method(message, timeout=SECONDS, metadata=METADATA)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, text = error.code(), error.details()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
                raise CoordinatorSilent(
                    f"the coordinator at {self._address} does not answer, or does not believe this site's certificate "
                    f"({text}): excise site doctor tells which"
                ) from None
            name = code.name.lower()
            raise CoordinatorRefused(f"the coordinator refused: {text} ({name})", name) from None


METADATA = ((PROTOCOL_KEY, PROTOCOL),)
MANIFEST = "excise model 1"
"""The form of manifests that this release reads."""
REMEDY = "nothing was fetched. Install the coordinator's release of excise, or ask the coordinator"


@contextmanager
def connected(folder: Path, settings: CoordinatorSettings | None) -> Iterator[Coordinator]:
    """Connect as the site whose site.toml is in `folder`.

    Raises
    ------
    ConfigError : the site has joined no coordinator, or lacks its certificate
    """
    if settings is None:
        raise ConfigError("the site has joined no coordinator yet: excise site join INVITE")
    try:
        authority, identity = settings.ca.read_bytes(), (folder / IDENTITY).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read: join the coordinator with a new invite, excise site join"
        ) from None
    with secured(settings.api, authority, identity) as coordinator:
        yield coordinator


@contextmanager
def secured(address: str, authority: bytes, identity: bytes) -> Iterator[Coordinator]:
    """Connect with `identity`, a private key and its certificate; the other side's has to be of `authority`. All PEM."""
    begin = identity.find(b"-----BEGIN CERTIFICATE-----")
    credentials = grpc.ssl_channel_credentials(authority, identity[:begin], identity[begin:])
    options = [("grpc.max_receive_message_length", LARGEST), *IDLE]
    with grpc.secure_channel(address, credentials, options) as channel:
        yield Coordinator(channel, address)


def _told(one: pb.Request) -> Told:
    return Told(one.document, one.state, one.since, tuple(one.waits_for), one.standing)


def _manifest(one: pb.Model) -> dict[str, Any]:
    """What was signed of a model, when it is of this model and whole."""
    try:
        manifest = json.loads(one.manifest)
        sha, requests = manifest["file"]["sha256"], manifest["requests"]
        known = (manifest["format"], manifest["version"], manifest["file"]["bytes"])
        whole = all(isinstance(text, str) for text in (sha, manifest["digest"], *requests)) and isinstance(requests, list)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise MessageError(f"the manifest of model {one.version} cannot be read ({type(error).__name__}): {REMEDY}") from None
    for what, told, expected in zip(("format", "version", "size"), known, (MANIFEST, one.version, one.size), strict=True):
        if told != expected or isinstance(told, bool):
            raise MessageError(f"the {what} in the manifest of model {one.version} is {told!r}, not {expected!r}: {REMEDY}")
    if not whole:
        raise MessageError(f"the manifest of model {one.version} names no digest or no requests: {REMEDY}")
    return dict(manifest)
