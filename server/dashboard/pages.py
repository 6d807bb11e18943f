"""The pages: what each shows."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from excise.common.errors import RequestError
from excise.common.request import RequestKind
from excise.server.dashboard import settings
from excise.server.dashboard.access import Seen
from excise.server.dashboard.compare import compare
from excise.server.dashboard.render import renderer_of
from excise.server.dashboard.runs import RunCard
from excise.server.dashboard.shown import FILES, shown_of
from excise.server.dashboard.trail import told
from excise.server.dashboard.watch import topic_of
from excise.server.evidence_pack import PAGE
from excise.server.life import State
from excise.server.registry import versions
from excise.server.requests import COORDINATOR, of_run, status

LINES = 100
"""Lines of the audit log on a page."""
SEALED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
"""Policy of documents that we made earlier: self-contained, without scripts."""
pages = APIRouter()


@pages.get("/")
def overview(request: Request, session: Seen, run: str = "") -> Response:
    """One glance: a run's figures, sites, requests, charts, and what is to be decided."""
    shown = shown_of(request)
    return renderer_of(request).page(request, "overview.html", session, **shown.overview(run))


@pages.get("/requests")
def requests(request: Request, session: Seen) -> Response:
    """Every request, and a form for a new one."""
    shown = shown_of(request)
    values = shown.requests() | {"kinds": list(RequestKind)}
    return renderer_of(request).page(request, "requests.html", session, **values)


@pages.get("/requests/{name}")
def one_request(request: Request, session: Seen, name: str) -> Response:
    """One request: its text, its steps, what its sites decided, and what can be done.

    Raises
    ------
    RequestError : there is none of this name
    """
    shown = shown_of(request)
    if shown.source.store is None:
        raise RequestError("requests are a coordinator's: this dashboard shows runs alone")
    one = status(shown.source.store, name)
    view = shown.view(one.run) if one.run and any(card.name == one.run for card in shown.cards()) else None
    asked = _asked(shown.standing())
    if name not in asked or asked[name]["state"] != one.state:  # it moved just now, and nobody looked yet
        asked = _asked(shown.source.standing(None))
    version = next((found for found in versions(shown.source.store) if found.run == one.run), None) if one.run else None
    others = [other for other, found in asked.items() if found["state"] == State.APPROVED and other != name]
    together = [other for other in of_run(shown.source.store, one.run) if other != name] if one.run else []
    unsigned = [site for site in asked[name]["waits_for"] if site != COORDINATOR] if one.state is State.CANDIDATE else []
    evidence = bool(one.run) and PAGE in shown.documents(one.run)
    return renderer_of(request).page(
        request,
        "request.html",
        session,
        one=one,
        where=settings.shown(one.request.where),
        told=asked[name] | {"together": together, "unsigned": unsigned, "evidence": evidence},
        view=view,
        version=version,
        others=others,
    )


def _asked(standing: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in standing["requests"]} if standing else {}


@pages.get("/sites")
def sites(request: Request, session: Seen) -> Response:
    """Every site."""
    shown = shown_of(request)
    return renderer_of(request).page(request, "sites.html", session, standing=shown.standing(), view=shown.view(""))


@pages.get("/compare")
def compared(request: Request, session: Seen, a: str = "", b: str = "") -> Response:
    """Two runs or candidates side by side."""
    shown = shown_of(request)
    names = [name for card in shown.cards() for name in (card.name, *_candidates(card))]
    found = compare(shown.runs, a, b) if a in names and b in names else None
    topics = " ".join(topic_of(one.partition("/")[0]) for one in (a, b)) if found else "runs"
    return renderer_of(request).page(request, "compare.html", session, names=names, a=a, b=b, found=found, topics=topics)


def _candidates(card: RunCard) -> list[str]:
    return [f"{card.name}/{name}" for name in card.candidates] if len(card.candidates) > 1 else []


@pages.get("/embeddings")
def embeddings(request: Request, session: Seen, run: str = "") -> Response:
    """Where images lie in what the model sees, before and after."""
    shown = shown_of(request)
    view = shown.view(run)
    return renderer_of(request).page(
        request, "embeddings.html", session, cards=shown.cards(), run=view["run"]["name"] if view else ""
    )


@pages.get("/audit")
def audit(request: Request, session: Seen, before: int | None = None) -> Response:
    """The audit log, and whether its chain is whole."""
    shown = shown_of(request)
    found, total = shown.source.audit(LINES, before)
    lines = [told(line) for line in found]
    earlier = lines[-1].number if lines and lines[-1].number > 1 else None
    return renderer_of(request).page(
        request,
        "audit.html",
        session,
        lines=lines,
        total=total,
        faults=shown.faults(),
        earlier=earlier,
        known=shown.source.store,
        here=f"/audit?before={before}" if before else "/audit",
    )


@pages.get("/reports")
def reports(request: Request, session: Seen) -> Response:
    """Documents of every run."""
    return renderer_of(request).page(request, "reports.html", session, **shown_of(request).reports())


@pages.get("/runs/{run}/{file}")
def document(request: Request, session: Seen, run: str, file: str, download: bool = False) -> Response:
    """A document of a run.

    Raises
    ------
    ConfigError : there is no such run or document
    """
    shown = shown_of(request)
    path = shown.document(run, file)
    name = f"{run}-{file}" if download else None
    return FileResponse(path, media_type=FILES[file], headers={"Content-Security-Policy": SEALED}, filename=name)
