"""The calls of `common/api/coordinator.proto`: unpack, ask the part that knows, pack. Who may call is in `access.py`.

What a call raises on purpose (`ExciseError`) is told to the site: the text is ours, and names nothing but requests, sites and
models. Anything else is told as an incident number, and stands in the coordinator's log.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc

from excise.common.api import CHUNK, INCIDENT_KEY
from excise.common.api import coordinator_pb2 as pb
from excise.common.api.coordinator_pb2_grpc import CoordinatorServicer
from excise.common.canonical import canonical
from excise.common.decision import Decision
from excise.common.errors import ConfigError, ExciseError, RequestError, StorageError
from excise.common.identity import SiteKeys
from excise.common.request import ForgetRequest
from excise.common.signing import public_hex, read_key
from excise.server import evidence_pack, members, registry, requests
from excise.server.api.access import Caller, Limits, Refused, caller_of, invited_of, site_of
from excise.server.config import ServerConfig
from excise.server.requests import RequestStatus
from excise.server.setup import SIGNING_KEY, sites_authority
from excise.server.store import Store
from excise.server.waiting import awaited

PAUSE = 1.0
"""Seconds between two looks of a watching call."""
CODES = (
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
    (ExciseError, grpc.StatusCode.FAILED_PRECONDITION),
)
log = logging.getLogger("excise.api")
T = TypeVar("T")


def _answered(work: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """A call that counts against its caller's limit, and whose errors are told as they may be told."""

    @functools.wraps(work)
    async def call(self: Service, message: Any, context: grpc.aio.ServicerContext) -> T:
        try:
            caller = caller_of(context)
            self.limits.count(caller.key)
            return await work(self, message, caller)
        except Exception as error:
            await _refuse(context, error)
            raise AssertionError("a refused call has no answer") from error

    return call


def _streamed(work: Callable[..., AsyncIterator[T]]) -> Callable[..., AsyncIterator[T]]:
    """The same for a call that answers with a stream."""

    @functools.wraps(work)
    async def call(self: Service, message: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[T]:
        begun = ""
        try:
            caller = caller_of(context)
            self.limits.count(caller.key)
            self.limits.begin(caller.key)
            begun = caller.key
            async for one in work(self, message, caller):
                yield one
        except Exception as error:  # noqa: BLE001 - as above
            await _refuse(context, error)
        finally:
            if begun:
                self.limits.end(begun)

    return call


async def _refuse(context: grpc.aio.ServicerContext, error: Exception) -> None:
    if isinstance(error, Refused):
        await context.abort(error.code, error.text)
    for kind, code in CODES:
        if isinstance(error, kind) and not isinstance(error, StorageError):  # that names files of the coordinator's
            await context.abort(code, str(error))
    incident = secrets.token_hex(8)
    log.error("incident %s", incident, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"incident {incident}", ((INCIDENT_KEY, incident),))


class Service(CoordinatorServicer):
    """The service of the coordinator in `folder`."""

    def __init__(self, store: Store, folder: Path, config: ServerConfig, limits: Limits | None = None) -> None:
        self.store, self.folder, self.config, self.limits = store, folder, config, limits or Limits()

    async def _in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """The store waits for other writers; other calls need not."""
        return await asyncio.to_thread(work, *given)

    # ---- membership ---------------------------------------------------------------------------------------------------

    @_answered
    async def Join(self, message: pb.Keys, caller: Caller) -> pb.Membership:
        site, keys = invited_of(caller), SiteKeys(message.node, message.signing, message.request)
        given = (self.store, sites_authority(self.folder), site, caller.serial, keys, message.signature)
        return self._membership(await self._in_thread(members.join, *given))

    @_answered
    async def Renew(self, message: pb.Renewal, caller: Caller) -> pb.Membership:
        site = site_of(self.store, caller)
        given = (self.store, sites_authority(self.folder), site, message.request)
        return self._membership(await self._in_thread(members.renew, *given))

    def _membership(self, certificate: str) -> pb.Membership:
        return pb.Membership(certificate=certificate, coordinator=public_hex(read_key(self.folder / SIGNING_KEY)))

    # ---- requests -----------------------------------------------------------------------------------------------------

    @_answered
    async def Submit(self, message: pb.Document, caller: Caller) -> pb.Request:
        site, request = site_of(self.store, caller), ForgetRequest.from_json(message.text)
        await self._in_thread(requests.draft, self.store, request, (), f"site {site}", request.reason)
        return await self._in_thread(self._now, request.id, site)

    @_answered
    async def Decide(self, message: pb.Decision, caller: Caller) -> pb.Request:
        site = site_of(self.store, caller)
        try:
            decision = Decision.from_text(message.text)
        except ValueError as error:
            raise RequestError(f"that is no decision: {error}") from None
        given = (self.store, site, message.request, decision, message.signature)
        await self._in_thread(requests.decide, *given)
        return await self._in_thread(self._now, message.request, site)

    @_streamed
    async def Watch(self, message: pb.Nothing, caller: Caller) -> AsyncIterator[pb.Request]:
        told: dict[str, str] = {}
        while True:
            site = site_of(self.store, caller)  # again each time: it may be let out meanwhile
            for status in await self._in_thread(self._concerned, site):
                now = canonical([status.state, status.since, status.waits_for, status.sites])
                if told.get(status.request.id) != now:
                    told[status.request.id] = now
                    yield _told(status, site)
            await asyncio.sleep(PAUSE)

    def _now(self, request: str, site: str) -> pb.Request:
        return _told(awaited(self.store, self.config.runs, requests.status(self.store, request)), site)

    def _concerned(self, site: str) -> list[RequestStatus]:
        return [awaited(self.store, self.config.runs, one) for one in requests.concerned(self.store, site)]

    # ---- evidence -----------------------------------------------------------------------------------------------------

    @_answered
    async def GetEvidence(self, message: pb.RequestName, caller: Caller) -> pb.Evidence:
        site = site_of(self.store, caller)
        run = self._run(message.request, site)
        pack = await self._in_thread(evidence_pack.pack_of, self.store, run)
        signatures = {one["signer"]: one["signature"] for one in pack["signatures"]}
        return pb.Evidence(document=canonical(pack["document"]), signatures=signatures)

    @_answered
    async def SignEvidence(self, message: pb.Signature, caller: Caller) -> pb.Nothing:
        site = site_of(self.store, caller)
        run = self._run(message.request, site)
        given = (self.store, self.config, site, run, message.digest, message.signature)
        await self._in_thread(evidence_pack.sign_as_site, *given)
        return pb.Nothing()

    def _run(self, request: str, site: str) -> str:
        """The run that carries out a request which concerns the site; one answer for all that do not."""
        for status in requests.concerned(self.store, site):
            if status.request.id == request and status.run:
                return status.run
        raise RequestError(f"no evidence of '{request}' concerns '{site}'")

    # ---- models -------------------------------------------------------------------------------------------------------

    @_answered
    async def ListModels(self, message: pb.Nothing, caller: Caller) -> pb.Models:
        site_of(self.store, caller)
        return pb.Models(
            models=[
                pb.Model(
                    version=one.version,
                    manifest=one.manifest,
                    signature=one.signature,
                    size=one.size,
                    current=one.current,
                )
                for one in await self._in_thread(registry.versions, self.store)
            ]
        )

    @_streamed
    async def FetchModel(self, message: pb.Fetch, caller: Caller) -> AsyncIterator[pb.Chunk]:
        site_of(self.store, caller)
        model = await self._in_thread(registry.version, self.store, message.version)
        if not 0 <= message.offset <= model.size:
            raise Refused(grpc.StatusCode.OUT_OF_RANGE, f"model {model.version} has {model.size} bytes, not {message.offset}")
        offset = message.offset
        with registry.file_of(self.folder, model.digest).open("rb") as file:
            file.seek(offset)
            while data := await self._in_thread(file.read, CHUNK):
                yield pb.Chunk(offset=offset, data=data)
                offset += len(data)

    @_answered
    async def Report(self, message: pb.InUse, caller: Caller) -> pb.Nothing:
        site = site_of(self.store, caller)
        await self._in_thread(members.told, self.store, site, message.version or None, message.release)
        return pb.Nothing()


def _told(status: RequestStatus, site: str) -> pb.Request:
    return pb.Request(
        id=status.request.id,
        document=status.request.to_json(),
        state=status.state,
        since=status.since,
        waits_for=status.waits_for,
        standing=status.sites.get(site, ""),
    )
