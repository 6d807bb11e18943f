"""The dashboard as a web application: its parts put together, signing in, and the stream of changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from excise.common.errors import ExciseError, StorageError
from excise.server.dashboard.access import COOKIE, READER, Access, Changing, Looked, Refused
from excise.server.dashboard.actions import actions
from excise.server.dashboard.assets import ASSETS, answer, assets
from excise.server.dashboard.formats import without_paths
from excise.server.dashboard.guard import Guard
from excise.server.dashboard.hub import Hub
from excise.server.dashboard.pages import pages
from excise.server.dashboard.parts import PARTS
from excise.server.dashboard.printing import Printer, printing
from excise.server.dashboard.render import Renderer, renderer_of
from excise.server.dashboard.shown import Shown
from excise.server.dashboard.source import Source
from excise.server.dashboard.watch import Watch

THREADS = 8
"""Most calls that are answered at the same time. More would not be quicker, and what each thread keeps of memory adds up."""
STREAMS = 12
"""Most streams of changes of one session: a browser has one for all its tabs."""
entrance = APIRouter()
log = logging.getLogger("excise.dashboard")


def create_app(source: Source, access: Access) -> FastAPI:
    """The dashboard of one run store.

    Parameters
    ----------
    access : who may sign in
    """
    hub = Hub()
    watch = Watch(source, hub)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = THREADS
        tasks = [asyncio.create_task(watch.follow()), asyncio.create_task(_prepare(app.state.shown))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):  # not that it was cancelled just now
                    log.error("the dashboard looked no more: %s", type(ended).__name__)
            source.close()

    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.renderer = Renderer(source.name, access.by_password, source.toml is not None)
    app.state.shown, app.state.printer = Shown(source, watch), Printer()
    app.state.access, app.state.source, app.state.hub, app.state.runner = access, source, hub, None
    app.state.streams = Counter()
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.add_middleware(Guard)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(ExciseError, told)
    app.add_exception_handler(HTTPException, missing)
    app.add_exception_handler(RequestValidationError, mistyped)
    app.router.routes.insert(0, PARTS)
    for routes in (assets, entrance, printing, pages, actions):
        app.include_router(routes)
    return app


async def _prepare(shown: Shown) -> None:
    """Look at everything once, so that whoever comes first does not wait for it."""
    try:
        await asyncio.to_thread(shown.overview, "")
    except ExciseError as error:  # whoever comes is told as well
        log.warning("what the Overview shows cannot be read: %s", error)


async def refused(request: Request, error: Exception) -> Response:
    """Somebody who is not signed in, or may not do this."""
    assert isinstance(error, Refused)
    is_page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
    if error.status == 401 and is_page and "hx-request" not in request.headers:
        return RedirectResponse("/login", 303)
    answer = said(request, str(error), error.status)
    if error.seconds is not None:
        answer.headers["Retry-After"] = str(error.seconds)
    return answer


async def told(request: Request, error: Exception) -> Response:
    """A mistake that can be told: what was expected, what came, what to do."""
    if isinstance(error, StorageError):  # whose text names places on the coordinator's disk
        log.error("%s %s: %s", request.method, request.url.path, error)
        return said(request, "The coordinator's store or disk does not answer; its own log says why. Try again.", 503)
    return said(request, str(error), 409 if request.method == "POST" else 404)


async def mistyped(request: Request, error: Exception) -> Response:
    """A field that holds something else than it may; what was typed is not told again."""
    assert isinstance(error, RequestValidationError)
    found = dict.fromkeys(f"{_field(one['loc'])}: {expected(one)}" for one in error.errors())
    return said(request, "; ".join(found), 422)


def expected(one: Mapping[str, Any]) -> str:
    """What a field has to hold, by one of pydantic's errors.

    >>> expected({"type": "int_parsing", "msg": "Input should be a valid integer, unable to parse string as an integer"})
    'expected a whole number'
    """
    kind = str(one["type"])
    if kind == "missing":
        return "it is missing"
    if kind == "greater_than_equal":
        return f"expected {one['ctx']['ge']} or more"
    if kind.startswith("int_"):
        return "expected a whole number"
    return "expected true or false" if kind.startswith("bool_") else "expected something else"


def _field(place: Sequence[str | int]) -> str:
    return str(place[1] if len(place) > 1 else place[0])


async def missing(request: Request, error: Exception) -> Response:
    """Whatever the framework refuses."""
    assert isinstance(error, HTTPException)
    return said(request, "There is no such page." if error.status_code == 404 else error.detail, error.status_code)


def said(request: Request, text: str, status: int) -> Response:
    """A message as a fragment for the page that is there, or as a page of its own."""
    shown, text = renderer_of(request), without_paths(text)
    if "hx-request" in request.headers:
        return shown.fragment("said.html", status, text=text, sign_in=status == 401)
    return shown.page(request, "problem.html", None, status, text=text)


@entrance.get("/login", response_class=HTMLResponse)
def login_page(request: Request) -> Response:
    """Ask who it is."""
    shown = renderer_of(request)
    return shown.page(request, "login.html", None, problem="")


@entrance.post("/login")
def login(request: Request, name: Annotated[str, Form()], password: Annotated[str, Form()]) -> Response:
    """Let somebody in by name and password."""
    access: Access = request.app.state.access
    shown = renderer_of(request)
    try:
        session = access.sign_in(name, password, address_of(request))
    except Refused as error:
        return shown.page(request, "login.html", None, error.status, problem=str(error))
    return _with_cookie(request, session.id)


@entrance.get("/enter")
def enter(request: Request, token: str = "") -> Response:
    """Let somebody in who has the address that was printed when the dashboard of a folder of runs was started."""
    access: Access = request.app.state.access
    return _with_cookie(request, access.sign_in(READER.name, token, address_of(request)).id)


@entrance.post("/logout")
def logout(request: Request, session: Changing) -> Response:
    """End a session."""
    access: Access = request.app.state.access
    access.sessions.sign_out(session.id)
    response = Response(status_code=200, headers={"HX-Redirect": "/login"})
    response.delete_cookie(COOKIE)
    return response


@entrance.get("/events")
async def events(request: Request, session: Looked) -> Response:
    """The stream of changes.

    Raises
    ------
    Refused : the session has too many
    """
    hub: Hub = request.app.state.hub
    access: Access = request.app.state.access
    streams: Counter[str] = request.app.state.streams
    if streams[session.id] >= STREAMS:
        raise Refused(429, "too many streams of one session: close a browser", 10)

    async def frames() -> AsyncIterator[bytes]:
        streams[session.id] += 1
        try:
            async for frame in hub.stream():
                if await access.find(session.id, in_use=False) is None:  # signed out, or removed, meanwhile
                    return
                yield frame
        finally:
            streams[session.id] -= 1
            if not streams[session.id]:
                del streams[session.id]

    return StreamingResponse(frames(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@entrance.get("/me")
def me(session: Looked) -> dict[str, str]:
    """The key of who is signed in, for a page that outlived a session."""
    return {"csrf": session.csrf}


@entrance.get("/favicon.ico")
async def favicon(request: Request) -> Response:
    """The picture in the tab."""
    return answer(request, ASSETS["favicon.svg"])


def address_of(request: Request) -> str:
    """From where a call comes."""
    return request.client.host if request.client else ""


def _with_cookie(request: Request, session: str) -> Response:
    response = RedirectResponse("/", 303)
    response.set_cookie(COOKIE, session, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response
