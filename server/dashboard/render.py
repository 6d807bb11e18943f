"""Pages and parts of them, from templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from excise.server.dashboard import formats
from excise.server.dashboard.sessions import Session
from excise.server.dashboard.watch import topic_of

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


class Renderer:
    """Makes text of values.

    Parameters
    ----------
    name : whose dashboard it is
    by_password : whether people sign in by name and password
    changeable : whether there is a coordinator, so that something can be done
    """

    def __init__(self, name: str, by_password: bool, changeable: bool) -> None:
        self._name, self._by_password, self._changeable = name, by_password, changeable
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(default=True), undefined=StrictUndefined
        )
        self._environment.filters |= {**formats.FILTERS, "topic": topic_of}

    def page(self, request: Request, template: str, session: Session | None, code: int = 200, **values: Any) -> HTMLResponse:
        """A whole page."""
        path = request.url.path
        heading = next((name for place, name in PLACES if path.startswith(place) and (place != "/" or path == "/")), "excise")
        frame = {
            "session": session,
            "acts": self._changeable and session is not None and session.role == "coordinator",
            "places": PLACES,
            "heading": heading,
            "htmx": HTMX,
            "whose": self._name,
            "by_password": self._by_password,
        }
        return HTMLResponse(self.text(template, **frame, **values), code)

    def fragment(self, template: str, code: int = 200, **values: Any) -> HTMLResponse:
        """A part of a page."""
        return HTMLResponse(self.text(template, **values), code)

    def text(self, template: str, **values: Any) -> str:
        """What a template makes of values."""
        return self._environment.get_template(template).render(**values)


def renderer_of(request: Request) -> Renderer:
    """What makes pages of the application that is asked."""
    found: Renderer = request.app.state.renderer
    return found
