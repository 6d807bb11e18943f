"""The pages: what each shows, and the parts of them that are fetched anew when something changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from excise.common.errors import ConfigError, RequestError
from excise.common.request import RequestKind
from excise.server.dashboard import figures, formats
from excise.server.dashboard.access import Access, Seen
from excise.server.dashboard.compare import compare
from excise.server.dashboard.run_view import run_view
from excise.server.dashboard.runs import RunCard, Runs
from excise.server.dashboard.sessions import Session
from excise.server.dashboard.source import Source
from excise.server.dashboard.watch import Watch
from excise.server.evidence_pack import PACK, PAGE
from excise.server.registry import versions
from excise.server.requests import status

TEMPLATES = Path(__file__).parent / "templates"
PLACES = (
    ("/", "Overview"),
    ("/requests", "Requests"),
    ("/sites", "Sites"),
    ("/compare", "Compare"),
    ("/embeddings", "Embeddings"),
    ("/audit", "Audit"),
    ("/reports", "Reports"),
)
HTMX = json.dumps(
    {
        "allowEval": False,
        "includeIndicatorStyles": False,
        "selfRequestsOnly": True,
        "historyCacheSize": 0,
        "responseHandling": [
            {"code": "204", "swap": False},
            {"code": "[23]..", "swap": True},
            {"code": "[45]..", "swap": True, "error": True, "target": "#said"},
        ],
    }
)
"""Settings of HTMX: under our policy it may neither evaluate text nor write styles."""
LINES = 100
"""Lines of the audit log on a page."""
FILES = {"report.html": "text/html", PACK: "application/json", PAGE: "text/html", "metrics.json": "application/json"}
"""Files of a run that are given out."""
SEALED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
"""Policy of documents that we made earlier: self-contained, without scripts."""
pages = APIRouter()


class Pages:
    """Renders; what does not depend on who looks is rendered once for all viewers until something changes."""

    def __init__(self, source: Source, access: Access, watch: Watch) -> None:
        self.source, self._access, self._watch = source, access, watch
        self.runs = Runs(source.runs)
        self._kept: dict[tuple[Any, ...], tuple[int, Any]] = {}
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(default=True), undefined=StrictUndefined
        )
        self._environment.filters |= formats.FILTERS

    def page(self, request: Request, template: str, session: Session | None, code: int = 200, **values: Any) -> HTMLResponse:
        """A whole page."""
        path = request.url.path
        heading = next((name for place, name in PLACES if path.startswith(place) and (place != "/" or path == "/")), "excise")
        acts = session is not None and session.role == "coordinator" and self.source.toml is not None
        frame = {
            "session": session,
            "acts": acts,
            "places": PLACES,
            "heading": heading,
            "htmx": HTMX,
            "whose": self.source.name,
            "by_password": self._access.by_password,
        }
        return HTMLResponse(self._environment.get_template(template).render(**frame, **values), code)

    def fragment(self, template: str, code: int = 200, **values: Any) -> HTMLResponse:
        """A part of a page."""
        return HTMLResponse(self.text(template, **values), code)

    def text(self, template: str, **values: Any) -> str:
        """What a template makes of values."""
        return self._environment.get_template(template).render(**values)

    def kept(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` made at this state of the run store, for whoever asks next."""
        version, found = self._kept.get(key, (-1, None))
        if version == self._watch.version:
            return found
        version, made = self._watch.version, make()
        if len(self._kept) > 200:  # of runs that nobody looks at by now
            self._kept.clear()
        self._kept[key] = version, made
        return made

    # --- what is shown -------------------------------------------------------------------------------------------------

    def cards(self) -> list[RunCard]:
        """Every run, the latest first."""
        found: list[RunCard] = self.kept(("runs",), self.runs.cards)
        return found

    def standing(self) -> dict[str, Any] | None:
        """How the coordinator stands."""
        found: dict[str, Any] | None = self.kept(("standing",), self.source.standing)
        return found

    def view(self, run: str) -> dict[str, Any] | None:
        """One run, the latest when none is named; None when there is none yet.

        Raises
        ------
        ConfigError : there is no run of this name
        """
        names = [card.name for card in self.cards()]
        if run and run not in names:
            raise ConfigError(f"no run '{run}' in {self.source.name}")
        if not names:
            return None
        chosen = run or names[0]
        found: dict[str, Any] = self.kept(("view", chosen), lambda: run_view(self.runs, chosen))
        return found

    def documents(self, run: str) -> list[str]:
        """Names of the documents that a run has by now."""
        return [name for name in FILES if (self.source.runs / run / name).is_file()]


def pages_of(request: Request) -> Pages:
    """The pages of the application that is asked."""
    found: Pages = request.app.state.pages
    return found


@pages.get("/")
def overview(request: Request, session: Seen, run: str = "") -> Response:
    """One glance: a run's figures, sites, requests, charts, and what is to be decided."""
    shown = pages_of(request)
    return shown.page(request, "overview.html", session, **_overview(shown, run))


def _overview(shown: Pages, run: str) -> dict[str, Any]:
    view, standing = shown.view(run), shown.standing()
    lines, total = shown.source.audit(6)
    asked = standing["requests"] if standing else []
    mine = [one for one in asked if view and one["run"] == view["run"]["name"]]
    faults = shown.kept(("faults",), lambda: shown.source.store.log_faults() if shown.source.store else [])
    return {
        "view": view,
        "run": view["run"]["name"] if view else "",
        "documents": shown.documents(view["run"]["name"]) if view else [],
        "cards": shown.cards(),
        "standing": standing,
        "decided": mine,
        "lines": lines,
        "total": total,
        "faults": faults,
    }


@pages.get("/panel/{name}")
def panel(request: Request, session: Seen, name: str, run: str = "") -> Response:
    """A part of the overview, anew.

    Raises
    ------
    ConfigError : there is no such part
    """
    if name not in ("headline", "sites", "requests", "gates", "audit"):
        raise ConfigError(f"no panel '{name}'")
    shown = pages_of(request)
    text: str = shown.kept(("panel", name, run), lambda: shown.text(f"_{name}.html", **_overview(shown, run)))
    return HTMLResponse(text)


@pages.get("/chart/{name}.json")
def chart(request: Request, session: Seen, name: str, run: str = "") -> Response:
    """The figures of a drawn panel.

    Raises
    ------
    ConfigError : there is no such chart, or no such run
    """
    shown = pages_of(request)
    made = figures.CHARTS.get(name)
    if made is None:
        raise ConfigError(f"no chart '{name}'")
    view = shown.view(run)
    told = shown.kept(("chart", name, run), lambda: made(view, shown.source.runs))
    return JSONResponse(told)


@pages.get("/requests")
def requests(request: Request, session: Seen) -> Response:
    """Every request, and a form for a new one."""
    shown = pages_of(request)
    return shown.page(
        request, "requests.html", session, standing=shown.standing(), cards=shown.cards(), kinds=list(RequestKind)
    )


@pages.get("/requests/{name}")
def one_request(request: Request, session: Seen, name: str) -> Response:
    """One request: its text, its steps, what its sites decided, and what can be done.

    Raises
    ------
    RequestError : there is none of this name
    """
    shown = pages_of(request)
    if shown.source.store is None:
        raise RequestError("requests are a coordinator's: this dashboard shows runs alone")
    one = status(shown.source.store, name)
    view = shown.view(one.run) if one.run and any(card.name == one.run for card in shown.cards()) else None
    standing = shown.standing() or {"requests": []}
    told = next(found for found in standing["requests"] if found["id"] == name)
    version = next((found for found in versions(shown.source.store) if found.run == one.run), None) if one.run else None
    return shown.page(request, "request.html", session, one=one, told=told, view=view, version=version)


@pages.get("/sites")
def sites(request: Request, session: Seen) -> Response:
    """Every site."""
    shown = pages_of(request)
    return shown.page(request, "sites.html", session, standing=shown.standing(), view=shown.view(""))


@pages.get("/compare")
def compared(request: Request, session: Seen, a: str = "", b: str = "") -> Response:
    """Two runs or candidates side by side."""
    shown = pages_of(request)
    names = [name for card in shown.cards() for name in (card.name, *_candidates(shown, card.name))]
    found = compare(shown.runs, a, b) if a in names and b in names else None
    return shown.page(request, "compare.html", session, names=names, a=a, b=b, found=found)


def _candidates(shown: Pages, run: str) -> list[str]:
    view = shown.view(run) or {}
    tried = [one["name"] for one in view.get("candidates", [])]
    return [f"{run}/{name}" for name in tried] if len(tried) > 1 else []


@pages.get("/embeddings")
def embeddings(request: Request, session: Seen, run: str = "") -> Response:
    """Where images lie in what the model sees, before and after."""
    shown = pages_of(request)
    view = shown.view(run)
    return shown.page(request, "embeddings.html", session, cards=shown.cards(), run=view["run"]["name"] if view else "")


@pages.get("/audit")
def audit(request: Request, session: Seen, before: int | None = None) -> Response:
    """The audit log, and whether its chain is whole."""
    shown = pages_of(request)
    lines, total = shown.source.audit(LINES, before)
    store = shown.source.store
    faults = shown.kept(("faults",), store.log_faults) if store else []
    earlier = lines[-1]["line"] if lines and lines[-1]["line"] > 1 else None
    return shown.page(request, "audit.html", session, lines=lines, total=total, faults=faults, earlier=earlier, known=store)


@pages.get("/reports")
def reports(request: Request, session: Seen) -> Response:
    """Documents of every run."""
    shown = pages_of(request)
    rows = [(card, shown.documents(card.name)) for card in shown.cards()]
    return shown.page(request, "reports.html", session, rows=rows)


@pages.get("/runs/{run}/{file}")
def document(request: Request, session: Seen, run: str, file: str, download: bool = False) -> Response:
    """A document of a run.

    Raises
    ------
    ConfigError : there is no such run or document
    """
    shown = pages_of(request)
    path = shown.source.runs / run / file
    if file not in FILES or run not in {card.name for card in shown.cards()} or not path.is_file():
        raise ConfigError(f"no '{file}' of a run '{run}' yet")
    name = f"{run}-{file}" if download else None
    return FileResponse(path, media_type=FILES[file], headers={"Content-Security-Policy": SEALED}, filename=name)
